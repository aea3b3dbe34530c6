"""A loaded model: the one object that the command line, an application or a notebook talks to."""

from collections import deque
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from edgellm.backends.base import Backend, Rows, run_step
from edgellm.engine.draft import DraftModel, check_vocabularies
from edgellm.engine.engine import Engine
from edgellm.engine.explain import explain
from edgellm.engine.factory import RequestFactory
from edgellm.engine.identity import identity
from edgellm.engine.logprobs import mean_logprob
from edgellm.engine.params import SamplingParams
from edgellm.engine.sizes import MAX_LOGIT_ROWS, make_cache, step_rows
from edgellm.engine.stream import Stream
from edgellm.errors import OptionError, TemplateError
from edgellm.families.network import Network
from edgellm.inspect.probe import Probe
from edgellm.inspect.profile import OperationProfile, profile
from edgellm.kernels.kv_formats import kv_formats
from edgellm.memory.disk.store import BlockStore
from edgellm.memory.layout import state_layout
from edgellm.memory.prefix import CacheReport, PrefixCache
from edgellm.memory.sequence import Sequence
from edgellm.packed.read import PackedModel
from edgellm.tokenizer import Tokenizer, Vocabulary, open_tokenizer

if TYPE_CHECKING:
    from edgellm.template import ChatTemplate


class Model:
    """A model ready to generate. Made by `edgellm.load`; a context manager; may be used from several threads."""

    def __init__(
        self, packed: PackedModel, backend: Backend, *,
        context: int, kv_cache_dtype: str = "bf16", kv_memory: int | None = None,
        draft: PackedModel | None = None, prefix_cache: Path | None = None, prefix_cache_bytes: int = 4 << 30,
    ) -> None:  # fmt: skip
        """`context` tokens at most. The backend is closed with the model.

        Errors: OptionError for KV memory that is too small, or a draft model with another vocabulary.
        """
        self.name: str = str(packed.provenance.get("name") or packed.path.stem)
        self.network: Network = packed.network
        self.context, self.threads, self.isa = context, backend.threads, backend.description
        self.packed = packed
        vocabulary = Vocabulary.from_bytes(packed.vocabulary)
        self.tokenizer: Tokenizer = open_tokenizer(vocabulary)
        if draft is not None:
            check_vocabularies(vocabulary, Vocabulary.from_bytes(draft.vocabulary), draft.path.stem)
        layout = state_layout(packed.network, kv_formats()[kv_cache_dtype])
        rows = min(step_rows(packed.nbytes), context)
        self._cache = make_cache(layout, context=context, rows=rows, kv_memory=kv_memory, backend=backend)
        named = identity(packed, layout.kv_format, backend.name)
        self._store: BlockStore | None = None
        if prefix_cache is not None:  # before there are threads, which a folder of no use must not leave behind
            self._store = BlockStore(
                prefix_cache, model=named, block_bytes=layout.block_bytes, budget_bytes=prefix_cache_bytes,
                state_bytes=layout.slots.nbytes if layout.slots else None,
            )  # fmt: skip
        runner = backend.open(packed, self._cache, context=context, max_rows=rows, max_logit_rows=MAX_LOGIT_ROWS)
        self.max_rows = runner.max_rows
        prefixes = PrefixCache(self._cache, model=named, store=self._store)
        self.engine = Engine(runner, backend, self._cache, prefixes, context=context)
        self._draft = None if draft is None else DraftModel(draft, backend, context=context)
        self._factory = RequestFactory(packed.network, self.tokenizer, self.engine, context=context, draft=self._draft)

    # What the model says

    def generate(
        self,
        prompt: str | Seq[int],
        params: SamplingParams = SamplingParams(),  # noqa: B008
        *,
        priority: int = 0,
        probe: Probe | None = None,
    ) -> Stream:
        """Continue a text, whose special tokens are parsed, or token ids. Of several requests, those of higher priority
        come first where room is short.

        Errors: OptionError, ContextLengthError, GrammarError; ClosedError and KVMemoryError, then and from the stream.
        """
        self.engine.check_open()
        ids = self.tokenize(prompt, special=True) if isinstance(prompt, str) else list(prompt)
        return self._stream(ids, params, priority, probe)

    def chat(
        self,
        messages: Seq[Mapping[str, object]],
        params: SamplingParams = SamplingParams(),  # noqa: B008
        *,
        tools: Seq[Mapping[str, object]] | None = None,
        priority: int = 0,
        probe: Probe | None = None,
    ) -> Stream:
        """Answer a conversation: [{"role": "user", "content": "..."}, ...]. Special tokens in contents are plain text.

        Errors: as generate, and TemplateError.
        """
        self.engine.check_open()
        return self._stream(self.encode(messages, tools=tools), params, priority, probe)

    def generate_n(self, prompt: str | Seq[int], params: SamplingParams, n: int, *, priority: int = 0) -> list[Stream]:
        """`n` answers to a prompt that is computed once, with seeds from `params.seed` on, or drawn ones.

        Each is as from `generate` with its seed. The first computes the prompt's logprobs, if asked for, and all show
        them. Errors: as generate.
        """
        if type(n) is not int or n < 1:
            raise OptionError(f"n {n!r} is not a whole number from 1 on")
        ids = self.tokenize(prompt, special=True) if isinstance(prompt, str) else list(prompt)
        seeds = [None if params.seed is None else params.seed + number for number in range(n)]
        others = [replace(params, seed=seed, prompt_logprobs=None) for seed in seeds[1:]]
        streams = [self.generate(ids, asked, priority=priority) for asked in (params, *others)]
        for stream in streams[1:]:
            stream.prompt_logprobs = streams[0].prompt_logprobs
        return streams

    def best_of(self, prompt: str | Seq[int], params: SamplingParams, n: int, *, priority: int = 0) -> Stream:
        """Of `n` answers, read to their end, the one whose tokens have the highest logprobs on average, or the first of
        such: its `text`, `ids`, `logprobs` and `usage`. Errors: as generate.
        """
        asked = replace(params, logprobs=params.logprobs or 0)
        streams = self.generate_n(prompt, asked, n, priority=priority)
        try:
            for stream in streams:
                deque(stream, maxlen=0)
        finally:
            for stream in streams:
                stream.close()
        return max(streams, key=lambda stream: mean_logprob(stream.logprobs))

    def logits(self, ids: Seq[int]) -> NDArray[np.float32]:
        """What the model expects after each token of a text, float32 [T, V]. Errors: as generate."""
        self._factory.check_prompt(ids)
        self._factory.check_room(len(ids), SamplingParams(context_policy="stop"))
        sequence = Sequence(self._cache)
        result = np.empty((len(ids), self.network.vocabulary), np.float32)
        with self.engine.alone() as runner:
            try:
                size = min(MAX_LOGIT_ROWS, runner.max_rows)
                for first in range(0, len(ids), size):
                    tokens = ids[first : first + size]
                    sequence.reserve(first + len(tokens))
                    run_step(runner, [Rows(sequence, tokens, range(len(tokens)))])
                    result[first : first + len(tokens)] = runner.logits
            finally:
                sequence.rewind(0)
        return result

    def unembed(self, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits [R][V] that the last norm and the head make of hidden states [R][D] of a Probe: a logit lens."""
        rows = np.asarray(hidden, np.float32)
        if rows.ndim != 2 or rows.shape[1] != self.network.width:
            raise OptionError(f"hidden states of shape {rows.shape} are not [R][{self.network.width}]")
        parts = [rows[at : at + MAX_LOGIT_ROWS] for at in range(0, len(rows), MAX_LOGIT_ROWS)]
        with self.engine.alone() as runner:
            return np.concatenate([runner.unembed(part) for part in parts])

    # Text and tokens

    def tokenize(self, text: str, *, special: bool = False, add_bos: bool | None = None) -> list[int]:
        """Token ids of a text; `special` parses special tokens in it; `add_bos` None does as the vocabulary says."""
        return self.tokenizer.encode(text, special=special, add_bos=add_bos)

    def detokenize(self, ids: Seq[int], *, special: bool = False) -> str:
        """The text of token ids, with special tokens shown where `special` is set."""
        return self.tokenizer.decode(ids, special=special)

    def encode(
        self, messages: Seq[Mapping[str, object]], *, tools: Seq[Mapping[str, object]] | None = None
    ) -> list[int]:
        """Token ids of the prompt that `chat` makes of a conversation. Errors: TemplateError, OptionError."""
        return self._template.encode(self.tokenizer, messages, tools=tools)

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
        self.engine.close()
        if self._store is not None:
            self._store.close()
        if self._draft is not None:
            self._draft.close()
        self.packed.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def profile(self, rows: int, depth: int) -> list[OperationProfile]:
        """Where the time of a step of `rows` rows behind `depth` positions goes. Errors: ClosedError, OptionError."""
        if not 1 <= rows <= self.max_rows or not 0 <= depth <= self.context - rows:
            raise OptionError(f"a profile of {rows} rows at depth {depth} does not fit a context of {self.context}")
        with self.engine.alone() as runner:
            return profile(runner, self.packed, rows, depth)

    def explain(self, report: CacheReport) -> str:
        """In words, how much of a prompt the prefix cache knew, and why not more."""
        return explain(report, self.tokenizer)

    def check_integrity(self) -> None:
        """The books of the KV memory and of the prefix cache balance; with no request under way, nobody holds any."""
        self.engine.check_integrity()
        if self._draft is not None:
            self._draft.check_integrity()

    @property
    def keeps_prefixes(self) -> bool:
        """Whether prefixes are kept on disk."""
        return self._store is not None

    @property
    def block_bytes(self) -> int:
        """Memory that the keys and values of KV_BLOCK tokens take."""
        return self._cache.layout.block_bytes

    @property
    def num_free_blocks(self) -> int:
        """Blocks that hold nothing, or only what the prefix cache can do without."""
        return self.engine.num_free_blocks

    def _stream(self, ids: list[int], params: SamplingParams, priority: int, probe: Probe | None) -> Stream:
        return Stream(self.engine, self._factory.make(ids, params, priority=priority, probe=probe), ids)

    @cached_property
    def _template(self) -> "ChatTemplate":
        source = self.packed.chat_template
        if source is None:
            raise TemplateError(f"model {self.name!r} has no chat template; use generate(), or `edgellm run --raw`")
        from edgellm.template import ChatTemplate  # Jinja takes 20 ms, which raw prompts need not pay

        return ChatTemplate(source, bos_token=self.tokenizer.bos_token, eos_token=self.tokenizer.eos_token)
