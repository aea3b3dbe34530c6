"""edgellm: quantized language models on the machine in front of you.

import edgellm
model = edgellm.load("smollm2-135m-instruct")
for piece in model.chat([{"role": "user", "content": "What is the capital of France?"}]):
    print(piece.text, end="", flush=True)
"""

try:
    import edgellm.kernels  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "edgellm.kernels":
        raise
    raise ImportError(
        "edgellm is not installed: this is its source code, whose other folders Python does not find by itself; "
        "run `pip install -e .` in the folder above it, in an environment of your own"
    ) from error

from edgellm.engine.answer import Answer, Timings, Usage
from edgellm.engine.constrain import Choice, Grammar, JsonObject, JsonSchema, Regex
from edgellm.engine.logprobs import Logprobs
from edgellm.engine.model import Model
from edgellm.engine.params import SamplingParams
from edgellm.engine.request import Piece, Status
from edgellm.engine.stream import Stream
from edgellm.errors import (
    CacheFolderError,
    ClosedError,
    ContextLengthError,
    DownloadError,
    EdgeLLMError,
    FileFormatError,
    GGUFError,
    GrammarError,
    KernelError,
    KVMemoryError,
    LlamaCppError,
    MissingExtraError,
    ModelNotFoundError,
    OptionError,
    PackedFileError,
    QueueFullError,
    TemplateError,
    TokenizerError,
    UnsupportedModelError,
    UsageError,
)
from edgellm.inspect.probe import Observation, Probe
from edgellm.load import load
from edgellm.pull import pull
from edgellm.version import __version__

__all__ = [
    "Answer",
    "CacheFolderError",
    "Choice",
    "ClosedError",
    "ContextLengthError",
    "DownloadError",
    "EdgeLLMError",
    "FileFormatError",
    "GGUFError",
    "Grammar",
    "GrammarError",
    "JsonObject",
    "JsonSchema",
    "KVMemoryError",
    "KernelError",
    "LlamaCppError",
    "Logprobs",
    "MissingExtraError",
    "Model",
    "ModelNotFoundError",
    "Observation",
    "OptionError",
    "PackedFileError",
    "Piece",
    "Probe",
    "QueueFullError",
    "Regex",
    "SamplingParams",
    "Status",
    "Stream",
    "TemplateError",
    "Timings",
    "TokenizerError",
    "UnsupportedModelError",
    "Usage",
    "UsageError",
    "__version__",
    "load",
    "pull",
]
