"""A small model that drafts for a large one (Leviathan et al., arXiv 2211.17192; Chen et al., arXiv 2302.01318).

It proposes its own likeliest tokens. The large model samples at every drafted row as if there were no draft, and keeps
tokens while they are the same: for a proposal without chance, that is what rejection sampling comes to.
"""

import time
from collections.abc import Sequence as Seq

from edgellm.backends.base import Backend, Rows, run_step
from edgellm.engine.params import SamplingParams
from edgellm.engine.speculate import MAX_MATCH, common_prefix
from edgellm.errors import OptionError
from edgellm.kernels.kv_formats import kv_formats
from edgellm.kernels.ops import KV_BLOCK
from edgellm.memory.kv import KVCache
from edgellm.memory.layout import state_layout
from edgellm.memory.sequence import Sequence
from edgellm.packed.read import PackedModel
from edgellm.tokenizer import Vocabulary

DRAFT_KV_CACHE_DTYPE = "bf16"
STEP_ROWS = 256  # tokens of a prompt computed in one step
RATE = 0.2  # of the last step's time that goes into the time of a token
FIRST_SECONDS = 1e-3  # of a token, before one is measured


class DraftModel:
    """Drafts for one request after another; keeps what it computed of the last text.

    It runs on the threads of the large model, and is called by whoever drives that one, between two of its steps.
    """

    def __init__(self, packed: PackedModel, backend: Backend, *, context: int) -> None:
        self.seconds = FIRST_SECONDS
        self._packed, self._context = packed, min(context, packed.network.context)
        layout = state_layout(packed.network, kv_formats()[DRAFT_KV_CACHE_DTYPE])
        # Slots: before the draft, after it so far, and after its next step
        cache = KVCache(layout, -(-self._context // KV_BLOCK), num_slots=3, make_store=backend.store)
        rows = min(STEP_ROWS, self._context)
        self._runner = backend.open(packed, cache, context=self._context, max_rows=rows, max_logit_rows=1)
        self._sequence = Sequence(cache)
        self._sampler = self._runner.sampler(SamplingParams(), [])
        self._tokens: list[int] = []  # whose keys and values the sequence holds

    def propose(self, text: Seq[int], limit: int) -> list[int]:
        """The `limit` tokens that it expects behind a text; fewer where its context ends."""
        proposed: list[int] = []
        if len(text) <= self._context:
            self._follow(text)
        for _ in range(min(limit, self._context - len(text) + 1)):
            begin = time.perf_counter()
            proposed.append(self._step([(proposed or text)[-1]], wanted=True, goes_on=bool(proposed)))
            self.seconds += RATE * (time.perf_counter() - begin - self.seconds)
        return proposed

    def close(self) -> None:
        """Let go of the file."""
        self._runner.close()
        self._packed.close()

    def _follow(self, text: Seq[int]) -> None:
        """Compute the text but for its last token, from where it differs from the one before."""
        kept = min(common_prefix(self._tokens, text), len(text) - 1)
        kept = self._sequence.rewind(kept)
        del self._tokens[kept:]
        while len(self._tokens) < len(text) - 1:
            self._step(list(text[len(self._tokens) : len(text) - 1][: self._runner.max_rows]), wanted=False)

    def check_integrity(self) -> None:
        """The books of its memory balance."""
        self._sequence.cache.check_integrity()

    def _step(self, tokens: list[int], *, wanted: bool, goes_on: bool = False) -> int:
        self._sequence.reserve(self._sequence.length + len(tokens), goes_on=goes_on)
        rows = Rows(self._sequence, tokens)
        if wanted:
            self._sampler.prepare()
            rows.logits, rows.sampler = [len(tokens) - 1], self._sampler
        run_step(self._runner, [rows])
        self._tokens += tokens
        return self._sampler.accept()[0] if wanted else -1


class DraftProposer:
    """A Proposer for one request."""

    match = MAX_MATCH  # it always has something to say

    def __init__(self, draft: DraftModel) -> None:
        self._draft = draft
        self._text: list[int] = []

    @property
    def seconds(self) -> float:
        return self._draft.seconds

    def extend(self, tokens: Seq[int]) -> None:
        self._text += tokens

    def propose(self, limit: int) -> list[int]:
        return self._draft.propose(self._text, limit)


def check_vocabularies(model: Vocabulary, draft: Vocabulary, name: str) -> None:
    """Errors: OptionError where the same ids do not mean the same tokens."""
    if model.tokens != draft.tokens:
        pairs = enumerate(zip(model.tokens, draft.tokens, strict=False))
        where = next((at for at, (a, b) in pairs if a != b), min(len(model.tokens), len(draft.tokens)))
        raise OptionError(
            f"draft {name!r} has another vocabulary (the first difference is token {where}, of {len(model.tokens)} "
            f"and {len(draft.tokens)}); take a smaller model of the same family"
        )
