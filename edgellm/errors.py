"""Everything that can go wrong for a user, as one tree.

EdgeLLMError
├── UsageError            the caller asked for something that makes no sense      (exit code 2)
│   ├── OptionError       an option outside its range
│   ├── ModelNotFoundError   no model of that name, with the near matches
│   ├── ContextLengthError   prompt longer than the context
│   ├── GrammarError      a schema, regex or grammar that cannot constrain a text
│   └── MissingExtraError    an optional package is not installed
├── FileFormatError       a file is not what it claims to be                      (exit code 1)
│   ├── PackedFileError
│   ├── GGUFError
│   └── TokenizerError    a vocabulary that cannot work
├── UnsupportedModelError a sound file of an architecture or type we do not run   (exit code 1)
├── TemplateError         a chat template that fails, attacks or does not end     (exit code 1)
├── DownloadError         a pull that failed or whose hash is wrong               (exit code 1)
├── KernelError           kernels cannot be compiled or loaded here               (exit code 1)
├── KVMemoryError         requests need more memory than the model was loaded with   (exit code 1)
├── CacheFolderError      the folder of the prefix cache cannot be used           (exit code 1)
├── LlamaCppError         llama.cpp cannot do what a comparison asks of it        (exit code 1)
├── QueueFullError        more requests than the model was loaded for             (exit code 1)
└── ClosedError           the model was closed while or before it was used        (exit code 1)

Every message carries the offending value and the remedy.
"""


class EdgeLLMError(Exception):
    """Base of all errors that edgellm raises on purpose."""

    exit_code = 1


class UsageError(EdgeLLMError):
    """The caller asked for something that makes no sense."""

    exit_code = 2


class OptionError(UsageError):
    """An option outside its range."""


class ModelNotFoundError(UsageError):
    """No model of that name."""


class ContextLengthError(UsageError):
    """A prompt longer than the context, alone or with the answer asked for; carries the lengths in tokens."""

    def __init__(
        self, num_prompt_tokens: int, num_context_tokens: int, remedy: str, *, num_wanted_tokens: int | None = None
    ) -> None:
        answer = f" and the answer up to {num_wanted_tokens}" if num_wanted_tokens else ""
        super().__init__(
            f"the prompt has {num_prompt_tokens} tokens{answer}, the context holds {num_context_tokens}; {remedy}"
        )
        self.num_prompt_tokens = num_prompt_tokens
        self.num_context_tokens = num_context_tokens


class GrammarError(UsageError):
    """A schema, regex or grammar that cannot constrain a text."""


class MissingExtraError(UsageError):
    """An optional package is needed and not installed."""


class FileFormatError(EdgeLLMError):
    """A file is not what it claims to be."""


class PackedFileError(FileFormatError):
    """A packed file that is truncated, corrupted or of another version."""


class GGUFError(FileFormatError):
    """A GGUF file that is truncated, corrupted or inconsistent."""


class TokenizerError(FileFormatError):
    """A vocabulary that cannot work."""


class UnsupportedModelError(EdgeLLMError):
    """A sound file of an architecture, type or shape that edgellm does not run."""


class TemplateError(EdgeLLMError):
    """A chat template that fails, attacks or does not end."""


class DownloadError(EdgeLLMError):
    """A pull that failed, or whose hash is not the expected one."""


class KernelError(EdgeLLMError):
    """Kernels cannot be compiled or loaded on this machine."""


class KVMemoryError(EdgeLLMError):
    """Requests hold so much memory that there is not enough for another."""


class CacheFolderError(EdgeLLMError):
    """The folder of the prefix cache cannot be used."""


class LlamaCppError(EdgeLLMError):
    """llama.cpp cannot do what a comparison asks of it."""


class QueueFullError(EdgeLLMError):
    """More requests than max_requests allows are under way or wait; try again later."""


class ClosedError(EdgeLLMError):
    """The model was closed while or before it was used."""
