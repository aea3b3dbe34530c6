"""A loaded model: the one object that the command line, an application or a notebook talks to."""

import threading
import weakref
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray

from edgellm.config import ModelConfig
from edgellm.engine.params import SamplingParams
from edgellm.engine.sampler import Sampler
from edgellm.engine.stream import Stream
from edgellm.errors import ClosedError, ContextLengthError, OptionError, TemplateError
from edgellm.kernels.jit import Library
from edgellm.kernels.ops import KV_BLOCK
from edgellm.memory.kv import KVCache, KVDtype, Sequence
from edgellm.model.profile import OperationProfile, profile
from edgellm.model.step import Rows, Stepper
from edgellm.model.team import Team
from edgellm.packed import PackedModel
from edgellm.template import ChatTemplate
from edgellm.tokenizer import Tokenizer, Vocabulary, open_tokenizer

# Tokens of a prompt computed in one step, within which nothing can be cancelled: fewer, the larger the model
MAX_ROWS, MIN_ROWS = 512, 60
FULL_ROWS_BYTES = 200_000_000  # of a model that takes MAX_ROWS, in some 0.1 s on two cores
MAX_LOGIT_ROWS = 64  # rows of a step with logits, which for a large vocabulary are its largest buffer
CONTEXTS = 2  # KV memory, in full contexts; the system commits it only as it is touched


class Model:
    """A model ready to generate. Made by `edgellm.load`; a context manager; may be used from several threads."""

    def __init__(
        self, packed: PackedModel, library: Library, *,
        context: int, threads: int, processors: int, kv_cache_dtype: KVDtype = "bf16",
    ) -> None:  # fmt: skip
        """`context` tokens at most, on `threads` threads where `processors` are available."""
        self.name: str = str(packed.provenance.get("name") or packed.path.stem)
        self.config: ModelConfig = packed.config
        self.context, self.threads = context, threads
        self.isa = library.target.isa
        self.packed = packed
        self.tokenizer: Tokenizer = open_tokenizer(Vocabulary.from_bytes(packed.vocabulary))
        self._cache = KVCache(packed.config, CONTEXTS * -(-context // KV_BLOCK), kv_cache_dtype)
        self._team = Team(library, threads, processors)
        weakref.finalize(self, self._team.close)  # a model that nobody closed must not leave threads behind
        self._stepper = Stepper(
            library, self._team, packed, self._cache,
            context=context, max_rows=min(_step_rows(packed.nbytes), context), max_logit_rows=MAX_LOGIT_ROWS,
        )  # fmt: skip
        self._stepping = threading.Lock()
        self._closed = False

    # What the model says

    def generate(self, prompt: str | Seq[int], params: SamplingParams = SamplingParams()) -> Stream:  # noqa: B008
        """Continue a text, whose special tokens are parsed, or token ids.

        Errors: OptionError, ContextLengthError; ClosedError, then and from the stream.
        """
        self._check_open()
        ids = self.tokenize(prompt, special=True) if isinstance(prompt, str) else list(prompt)
        return self._stream(ids, params)

    def chat(
        self,
        messages: Seq[Mapping[str, object]],
        params: SamplingParams = SamplingParams(),  # noqa: B008
        *,
        tools: Seq[Mapping[str, object]] | None = None,
    ) -> Stream:
        """Answer a conversation: [{"role": "user", "content": "..."}, ...]. Special tokens in contents are plain text.

        Errors: as generate, and TemplateError.
        """
        self._check_open()
        ids = self._template.encode(self.tokenizer, messages, tools=tools)
        return self._stream(ids, params)

    def logits(self, ids: Seq[int]) -> NDArray[np.float32]:
        """What the model expects after each token of a text, float32 [T, V]. Errors: as generate."""
        self._check_open()
        self._check_prompt(ids)
        sequence = self.new_sequence()
        result = np.empty((len(ids), self.config.vocabulary), np.float32)
        try:
            sequence.reserve(len(ids))
            for first in range(0, len(ids), MAX_LOGIT_ROWS):
                tokens = ids[first : first + MAX_LOGIT_ROWS]
                with self._stepping:
                    self._check_open()
                    result[first : first + len(tokens)] = self._stepper.run(
                        [Rows(sequence, tokens, range(len(tokens)))]
                    )
        finally:
            sequence.truncate(0)
        return result

    # Text and tokens

    def tokenize(self, text: str, *, special: bool = False, add_bos: bool | None = None) -> list[int]:
        """Token ids of a text; `special` parses special tokens in it; `add_bos` None does as the vocabulary says."""
        return self.tokenizer.encode(text, special=special, add_bos=add_bos)

    def detokenize(self, ids: Seq[int], *, special: bool = False) -> str:
        """The text of token ids, with special tokens shown where `special` is set."""
        return self.tokenizer.decode(ids, special=special)

    def render(
        self,
        messages: Seq[Mapping[str, object]],
        *,
        tools: Seq[Mapping[str, object]] | None = None,
        add_generation_prompt: bool = True,
    ) -> str:
        """The prompt that the model's chat template makes of a conversation. Errors: TemplateError, OptionError."""
        return self._template.render(messages, tools=tools, add_generation_prompt=add_generation_prompt)

    # Life

    def close(self) -> None:
        """End the threads and let go of the file. A step that runs is finished; streams then raise ClosedError."""
        with self._stepping:
            if self._closed:
                return
            self._closed = True
            self._team.close()
            self._stepper.close()
            self.packed.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # What streams need

    @property
    def max_rows(self) -> int:
        return self._stepper.max_rows

    def new_sequence(self) -> Sequence:
        return Sequence(self._cache)

    def step(self, rows: Rows) -> None:
        """Compute rows of one sequence. Errors: ClosedError."""
        with self._stepping:
            self._check_open()
            self._stepper.run([rows])

    def profile(self, rows: int, depth: int) -> list[OperationProfile]:
        """Where the time of a step of `rows` rows behind `depth` positions goes. Errors: ClosedError, OptionError."""
        if not 1 <= rows <= self.max_rows or not 0 <= depth <= self.context - rows:
            raise OptionError(f"a profile of {rows} rows at depth {depth} does not fit a context of {self.context}")
        with self._stepping:
            self._check_open()
            return profile(self._stepper, self.packed, self._cache, rows, depth)

    def check_integrity(self) -> None:
        """The books of the KV memory balance."""
        self._cache.check_integrity()

    @property
    def num_free_blocks(self) -> int:
        return self._cache.num_free

    def _stream(self, ids: list[int], params: SamplingParams) -> Stream:
        self._check_prompt(ids)
        breakers = self._breakers(params.dry_sequence_breakers) if params.dry_multiplier else []
        return Stream(self, ids, params, Sampler(params, self.config.vocabulary, ids, breakers))

    def _breakers(self, parts: Seq[str | int]) -> list[int]:
        """Token ids of DRY's sequence breakers."""
        ids: list[int] = []
        for part in parts:
            found = [part] if isinstance(part, int) else self.tokenizer.ids_containing(part)
            if not found:
                raise OptionError(f"dry_sequence_breakers: no token contains {part!r}; give a part of it, or token ids")
            ids += found
        return ids

    def _check_prompt(self, ids: Seq[int]) -> None:
        if not ids:
            raise OptionError("the prompt is empty; give at least one token")
        bad = [
            token for token in ids if not isinstance(token, int | np.integer) or not 0 <= token < self.config.vocabulary
        ]
        if bad:
            raise OptionError(f"token {bad[0]!r} is not an id of the vocabulary, 0..{self.config.vocabulary - 1}")
        if len(ids) > self.context:
            remedy = "shorten the prompt"
            if self.context < self.config.context:
                remedy += f", or load the model with a larger context (up to {self.config.context})"
            raise ContextLengthError(len(ids), self.context, remedy)

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError(f"model {self.name!r} was closed; load it again to use it")

    @cached_property
    def _template(self) -> ChatTemplate:
        source = self.packed.chat_template
        if source is None:
            raise TemplateError(f"model {self.name!r} has no chat template; use generate(), or `edgellm run --raw`")
        return ChatTemplate(source, bos_token=self.tokenizer.bos_token, eos_token=self.tokenizer.eos_token)


def _step_rows(nbytes: int) -> int:
    return max(MIN_ROWS, MAX_ROWS * min(FULL_ROWS_BYTES, nbytes) // nbytes)
