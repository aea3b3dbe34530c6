"""A loaded model: the one object that the command line, an application or a notebook talks to."""

import weakref
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from edgellm.backends.base import Backend, Rows, run_step
from edgellm.engine.answer import Answer
from edgellm.engine.context import Context
from edgellm.engine.draft import DraftModel, check_vocabularies
from edgellm.engine.drafting import Drafter
from edgellm.engine.driver import DRIVERS
from edgellm.engine.engine import Engine
from edgellm.engine.explain import explain
from edgellm.engine.fingerprint import fingerprint
from edgellm.engine.input import InputProcessor
from edgellm.engine.logprobs import mean_logprob
from edgellm.engine.params import SamplingParams, with_options
from edgellm.engine.sizes import MAX_LOGIT_ROWS, MAX_UNREAD, make_cache, step_rows
from edgellm.engine.speculate import CostModel
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
    from edgellm.template.template import ChatTemplate


class Model:
    """A model ready to generate. Made by `edgellm.load`; a context manager; may be used from several threads."""

    def __init__(
        self, packed: PackedModel, backend: Backend, *,
        context: int, kv_cache_dtype: str = "bf16", kv_memory: int | None = None,
        draft: PackedModel | None = None, prefix_cache_dir: Path | None = None, prefix_cache_bytes: int = 4 << 30,
        driver: str = "reader", max_requests: int | None = None,
    ) -> None:  # fmt: skip
        """`context` tokens at most. The backend is closed with the model.

        Errors: OptionError for KV memory that is too small, or a draft model with another vocabulary.
        """
        self.name: str = str(packed.provenance.get("name") or packed.path.stem)
        self.network: Network = packed.network
        self.context = context
        self.threads = backend.threads
        self.isa = backend.description
        self.packed = packed
        vocabulary = Vocabulary.from_bytes(packed.vocabulary)
        self.tokenizer: Tokenizer = open_tokenizer(vocabulary)
        if draft is not None:
            check_vocabularies(vocabulary, Vocabulary.from_bytes(draft.vocabulary), draft.path.stem)
        layout = state_layout(packed.network, kv_formats()[kv_cache_dtype])
        rows = min(step_rows(packed.nbytes), context)
        self._cache = make_cache(layout, context=context, rows=rows, kv_memory=kv_memory, backend=backend)
        named = fingerprint(packed, layout.kv_format, backend.name)
        self._store: BlockStore | None = None
        if prefix_cache_dir is not None:  # before there are threads, which a folder of no use must not leave behind
            self._store = BlockStore(
                prefix_cache_dir, model=named, block_bytes=layout.block_bytes, budget_bytes=prefix_cache_bytes,
                state_bytes=layout.slots.nbytes if layout.slots else None,
            )  # fmt: skip
        runner = backend.open(packed, self._cache, context=context, max_rows=rows, max_logit_rows=MAX_LOGIT_ROWS)
        self.max_rows = runner.max_rows
        self._draft = None if draft is None else DraftModel(draft, backend, context=context)
        room = Context(context, packed.network)
        costs = CostModel(depth_cost=layout.token_bytes / packed.nbytes)
        prefixes = PrefixCache(self._cache, model=named, store=self._store)
        self.engine = Engine(runner, self._cache, prefixes, costs, Drafter(self._draft), context=room)
        self._driver = DRIVERS[driver](self.engine, max_requests=max_requests)
        self._input = InputProcessor(
            packed.network, self.tokenizer, runner, costs, context=room, draft=self._draft,
            max_unread=MAX_UNREAD, masks_beside_steps=backend.leaves_a_processor,
        )  # fmt: skip
        self._backend = backend
        weakref.finalize(self, backend.close)  # a model that nobody closed must not leave threads behind

    # What the model says

    def generate(
        self, prompt: str | Seq[int], params: SamplingParams | None = None, *,
        priority: int = 0, probe: Probe | None = None, **options: Any,
    ) -> Stream:  # fmt: skip
        """Continue a text, whose special tokens are parsed, or token ids. Of several requests, those of higher priority
        come first where room is short.

        `options` are fields of SamplingParams, in place of those of `params`: generate(text, max_tokens=20).
        Errors: OptionError, ContextLengthError, GrammarError, QueueFullError; ClosedError and KVMemoryError, then and
        from the stream.
        """
        self._driver.check_open()
        return self._stream(self._token_ids(prompt), params, options, priority, probe)

    def chat(
        self, messages: Seq[Mapping[str, object]], params: SamplingParams | None = None, *,
        tools: Seq[Mapping[str, object]] | None = None, priority: int = 0, probe: Probe | None = None, **options: Any,
    ) -> Stream:  # fmt: skip
        """Answer a conversation: [{"role": "user", "content": "..."}, ...]. Special tokens in contents are plain text.

        Errors: as generate, and TemplateError.
        """
        self._driver.check_open()
        return self._stream(self.encode(messages, tools=tools), params, options, priority, probe)

    def complete(
        self, prompt: str | Seq[int], params: SamplingParams | None = None, *, priority: int = 0, **options: Any
    ) -> Answer:
        """As `generate`, read to the end. Errors: as generate."""
        return self.generate(prompt, params, priority=priority, **options).result()

    def generate_many(
        self, prompts: Seq[str | Seq[int]], params: SamplingParams | Seq[SamplingParams] | None = None, *,
        priority: int = 0, **options: Any,
    ) -> list[Answer]:  # fmt: skip
        """An answer to each prompt, all computed together. `params` are for all, or one for each.

        Errors: as generate; none is answered then.
        """
        self._driver.check_open()
        each = [params] * len(prompts) if params is None or isinstance(params, SamplingParams) else list(params)
        if len(each) != len(prompts):
            raise OptionError(f"there are {len(prompts)} prompts and {len(each)} params; give one for all, or one each")
        with ExitStack() as streams:  # which ends all where one fails
            started = [
                streams.enter_context(self.generate(prompt, asked, priority=priority, **options))
                for prompt, asked in zip(prompts, each, strict=True)
            ]
            return [stream.result() for stream in started]

    def generate_n(
        self, prompt: str | Seq[int], params: SamplingParams | None = None, n: int = 1, *, priority: int = 0,
        **options: Any,
    ) -> list[Stream]:  # fmt: skip
        """`n` answers to a prompt that is computed once, with seeds from `params.seed` on, or drawn ones.

        Each is as from `generate` with its seed. The first computes the prompt's logprobs, if asked for, and all show
        them. Errors: as generate.
        """
        if type(n) is not int or n < 1:
            raise OptionError(f"n {n!r} must be a whole number from 1 on")
        token_ids = self._token_ids(prompt)
        first = with_options(params, options)
        seeds = [None if first.seed is None else first.seed + number for number in range(n)]
        others = [replace(first, seed=seed, prompt_logprobs=None) for seed in seeds[1:]]
        streams = [self.generate(token_ids, asked, priority=priority) for asked in (first, *others)]
        for stream in streams[1:]:
            stream.prompt_logprobs = streams[0].prompt_logprobs
        return streams

    def best_of(
        self, prompt: str | Seq[int], params: SamplingParams | None = None, n: int = 1, *, priority: int = 0,
        **options: Any,
    ) -> Answer:  # fmt: skip
        """Of `n` answers the one whose tokens have the highest logprobs on average, or the first of such.

        Errors: as generate.
        """
        first = with_options(params, options)
        with ExitStack() as streams:
            started = self.generate_n(prompt, replace(first, logprobs=first.logprobs or 0), n, priority=priority)
            for stream in started:
                streams.enter_context(stream)
            answers = [stream.result() for stream in started]
        return max(answers, key=lambda answer: mean_logprob(answer.logprobs))

    def logits(self, ids: Seq[int]) -> NDArray[np.float32]:
        """What the model expects after each token of a text, float32 [T, V]. Errors: as generate."""
        self._input.check_prompt(ids)
        self._input.context.check(len(ids), SamplingParams(context_policy="stop"))
        sequence = Sequence(self._cache)
        result = np.empty((len(ids), self.network.vocabulary), np.float32)
        with self._driver.alone() as runner:
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
        with self._driver.alone() as runner:
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
        if self._driver.close():
            self._backend.close()
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
        """Where the time of a step of `rows` rows after `depth` positions goes. Errors: ClosedError, OptionError."""
        if not 1 <= rows <= self.max_rows or not 0 <= depth <= self.context - rows:
            raise OptionError(f"a profile of {rows} rows at depth {depth} does not fit a context of {self.context}")
        with self._driver.alone() as runner:
            return profile(runner, self.packed, rows, depth)

    def explain(self, report: CacheReport) -> str:
        """In words, how much of a prompt the prefix cache knew, and why not more."""
        return explain(report, self.tokenizer)

    def check_integrity(self) -> None:
        """The books of the KV memory and of the prefix cache balance; with no request under way, nobody holds any."""
        self._driver.check_integrity()
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
        return self._driver.num_free_blocks

    def _stream(
        self, token_ids: list[int], params: SamplingParams | None, options: Mapping[str, Any], priority: int,
        probe: Probe | None = None,
    ) -> Stream:  # fmt: skip
        request = self._input.process(token_ids, with_options(params, options), priority=priority, probe=probe)
        return Stream(self._driver, request, token_ids)

    def _token_ids(self, prompt: str | Seq[int]) -> list[int]:
        return self.tokenize(prompt, special=True) if isinstance(prompt, str) else list(prompt)

    @cached_property
    def _template(self) -> "ChatTemplate":
        source = self.packed.chat_template
        if source is None:
            raise TemplateError(f"model {self.name!r} has no chat template; use generate(), or `edgellm run --raw`")
        from edgellm.template.template import ChatTemplate  # Jinja takes 20 ms, which raw prompts need not pay

        return ChatTemplate(source, bos_token=self.tokenizer.bos_token, eos_token=self.tokenizer.eos_token)
