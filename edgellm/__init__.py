"""edgellm: quantized language models on the machine in front of you.

import edgellm
model = edgellm.load("smollm2-135m-instruct")
for piece in model.chat([{"role": "user", "content": "What is the capital of France?"}]):
    print(piece.text, end="", flush=True)
"""

from importlib.metadata import version

from edgellm.engine.logprobs import Logprobs
from edgellm.engine.model import Model
from edgellm.engine.params import SamplingParams
from edgellm.engine.stream import Piece, Stream, Timings, Usage
from edgellm.errors import EdgeLLMError
from edgellm.load import load

__version__ = version("edgellm")

__all__ = [
    "EdgeLLMError",
    "Logprobs",
    "Model",
    "Piece",
    "SamplingParams",
    "Stream",
    "Timings",
    "Usage",
    "__version__",
    "load",
]
