"""edgellm: quantized language models on the machine in front of you.

import edgellm
model = edgellm.load("smollm2-135m-instruct")
for piece in model.chat([{"role": "user", "content": "What is the capital of France?"}]):
    print(piece.text, end="", flush=True)
"""

from edgellm.engine.constrain import Choice, Grammar, JsonObject, JsonSchema, Regex
from edgellm.engine.logprobs import Logprobs
from edgellm.engine.model import Model
from edgellm.engine.params import SamplingParams
from edgellm.engine.request import Piece
from edgellm.engine.stream import Stream, Timings, Usage
from edgellm.errors import EdgeLLMError
from edgellm.inspect.probe import Observation, Probe
from edgellm.load import load
from edgellm.version import __version__

__all__ = [
    "Choice",
    "EdgeLLMError",
    "Grammar",
    "JsonObject",
    "JsonSchema",
    "Logprobs",
    "Model",
    "Observation",
    "Piece",
    "Probe",
    "Regex",
    "SamplingParams",
    "Stream",
    "Timings",
    "Usage",
    "__version__",
    "load",
]
