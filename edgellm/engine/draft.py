"""A small model that drafts for a large one (Leviathan et al., arXiv 2211.17192; Chen et al., arXiv 2302.01318).

It proposes its own likeliest tokens. The large model samples at every drafted row as if there were no draft, and keeps
tokens while they are the same: for a proposal without chance, that is what rejection sampling comes to.
"""

import time
from collections.abc import Sequence as Seq

from edgellm.backends.base import Backend, Rows, Runner, run_step
from edgellm.engine.params import SamplingParams
from edgellm.engine.speculate import MAX_MATCH
from edgellm.errors import KVMemoryError, OptionError
from edgellm.kernels.kv_formats import kv_formats
from edgellm.kernels.ops import KV_BLOCK
from edgellm.memory.kv import KVCache
from edgellm.memory.layout import state_layout
from edgellm.memory.sequence import Sequence
from edgellm.memory.tree import common_prefix
from edgellm.packed.read import PackedModel
from edgellm.tokenizer import Vocabulary

DRAFT_KV_CACHE_DTYPE = "bf16"
STEP_ROWS = 256  # tokens of texts computed at most between two steps of the large model
MOST_CONTEXTS = 4  # of memory for texts; the system commits it only as touched
MOST_TEXTS = 32  # drafted for at once
RATE = 0.2  # of the last draft's time that goes into the time of a token
FIRST_SECONDS = 1e-3  # of a token, before one is measured
SPREAD = 100  # tokens of an answer that the time to compute its prompt is thought to be for


class DraftModel:
    """Drafts for the requests of a large model. It keeps what it computed of a text, for the next that begins alike.

    It runs on the threads of the large model, and is called by whoever drives that one, between two of its steps.
    """

    def __init__(self, packed: PackedModel, backend: Backend, *, context: int) -> None:
        self.token_seconds = FIRST_SECONDS  # of a drafted token
        self.row_seconds = 0.0  # of a token of a text
        self.context = min(context, packed.network.context)
        self._packed = packed
        layout = state_layout(packed.network, kv_formats()[DRAFT_KV_CACHE_DTYPE])
        # Slots: before the draft, after it so far, and after its next step
        self._cache = KVCache(
            layout, MOST_CONTEXTS * -(-self.context // KV_BLOCK), num_slots=3 * MOST_TEXTS, make_store=backend.store
        )
        rows = max(min(STEP_ROWS, self.context), min(MOST_TEXTS, self.context))
        self._runner = backend.open(
            packed, self._cache, context=self.context, max_rows=rows, max_logit_rows=min(MOST_TEXTS, rows)
        )
        self._texts: list[_Text] = []  # least recently used first
        self._asked: list[DraftProposer] = []

    def proposer(self) -> "DraftProposer":
        """For one request."""
        return DraftProposer(self)

    def ask(self, proposer: "DraftProposer") -> None:
        """Let the next `run` compute what a proposer wants."""
        self._asked.append(proposer)

    def run(self) -> None:
        """Compute all that was asked for. A long prompt takes several calls, and has no proposal before the last."""
        asked = self._asked[: self._runner.max_logit_rows]
        self._asked = []
        ready: list[tuple[DraftProposer, _Text]] = []
        left = self._runner.max_rows
        at_work: list[_Text] = []  # which nobody takes memory from
        for proposer in asked:
            proposer.wanted = min(proposer.wanted, self.context - len(proposer.tokens) + 1)
            if proposer.wanted > 0:
                text = self._follow(proposer)
                at_work.append(text)
                left -= self._catch_up(text, proposer.tokens, left, at_work)
                if len(text.tokens) == len(proposer.tokens) - 1:
                    ready.append((proposer, text))
        begin = time.perf_counter()
        num_tokens = 0
        while drafting := [pair for pair in ready if len(pair[0].proposal) < pair[0].wanted]:
            num_tokens += self._draft(drafting, at_work)
        if num_tokens:
            self.token_seconds += RATE * ((time.perf_counter() - begin) / num_tokens - self.token_seconds)

    def close(self) -> None:
        """Let go of the file."""
        self._runner.close()
        self._packed.close()

    def check_integrity(self) -> None:
        """The books of its memory balance."""
        self._cache.check_integrity()

    def _follow(self, proposer: "DraftProposer") -> "_Text":
        """What is computed of a proposer's text: what it had, or the most of one that nobody follows any more."""
        text = proposer.text
        if text is None or text not in self._texts:  # others needed its memory
            idle = [text for text in self._texts if not text.is_used]
            text = max(idle, key=lambda text: common_prefix(text.tokens, proposer.tokens), default=None)
            if text is None or not common_prefix(text.tokens, proposer.tokens):
                text = _Text(self._runner, self._cache)
                self._texts.append(text)
            proposer.text = text
            text.is_used = True
        self._texts.remove(text)
        self._texts.append(text)
        kept = min(common_prefix(text.tokens, proposer.tokens), len(proposer.tokens) - 1)
        del text.tokens[text.sequence.rewind(kept) :]
        return text

    def _catch_up(self, text: "_Text", tokens: Seq[int], most: int, at_work: "Seq[_Text]") -> int:
        """Compute the tokens before the last that are missing, at most so many; how many it was."""
        new = list(tokens[len(text.tokens) : len(tokens) - 1][:most])
        if not new or not self._reserve(text, len(new), at_work):
            return 0
        begin = time.perf_counter()
        run_step(self._runner, [Rows(text.sequence, new)])
        self.row_seconds = (time.perf_counter() - begin) / len(new)
        text.tokens += new
        return len(new)

    def _draft(self, drafting: "Seq[tuple[DraftProposer, _Text]]", at_work: "Seq[_Text]") -> int:
        """The next token of each, as far as there is memory; of how many."""
        batch: list[tuple[DraftProposer, _Text, Rows]] = []
        for proposer, text in drafting:
            if not self._reserve(text, 1, at_work, goes_on=bool(proposer.proposal)):
                proposer.wanted = len(proposer.proposal)
                continue
            text.sampler.prepare()
            token = (proposer.proposal or proposer.tokens)[-1]
            batch.append((proposer, text, Rows(text.sequence, [token], [0], text.sampler)))
        if batch:
            run_step(self._runner, [rows for _, _, rows in batch])
        for proposer, text, rows in batch:
            text.tokens += rows.tokens
            proposer.proposal += text.sampler.accept()
        return len(batch)

    def _reserve(self, text: "_Text", count: int, at_work: "Seq[_Text]", *, goes_on: bool = False) -> bool:
        """Room for so many tokens more, from texts that are not at work if need be; whether there is any."""
        while True:
            try:
                text.sequence.reserve(text.sequence.length + count, goes_on=goes_on)
                return True
            except KVMemoryError:
                other = next((other for other in self._texts if other not in at_work), None)
                if other is None:
                    return False
                self._texts.remove(other)
                other.sequence.rewind(0)


class _Text:
    """What is computed of a text."""

    def __init__(self, runner: Runner, cache: KVCache) -> None:
        self.sequence = Sequence(cache)
        self.sampler = runner.sampler(SamplingParams(), [])
        self.tokens: list[int] = []  # whose keys and values the sequence holds
        self.is_used = False  # by a request under way


class DraftProposer:
    """A Proposer for one request."""

    match = MAX_MATCH  # it always has something to say

    def __init__(self, draft: DraftModel) -> None:
        self.tokens: list[int] = []
        self.text: _Text | None = None  # what is computed of them
        self.wanted = 0
        self.proposal: list[int] = []
        self._draft = draft

    @property
    def seconds(self) -> float:
        """Of a token, with its share of the time to compute the text up to here."""
        missing = len(self.tokens) - 1 - (len(self.text.tokens) if self.text else 0)
        return self._draft.token_seconds + max(missing, 0) * self._draft.row_seconds / SPREAD

    def extend(self, tokens: Seq[int]) -> None:
        self.tokens += tokens

    def ask(self, limit: int) -> None:
        self.wanted = limit
        self.proposal = []
        self._draft.ask(self)

    def propose(self, limit: int) -> list[int]:
        return self.proposal[:limit]

    def close(self) -> None:
        if self.text is not None:
            self.text.is_used = False


def check_vocabularies(model: Vocabulary, draft: Vocabulary, name: str) -> None:
    """Errors: OptionError where the same ids do not mean the same tokens."""
    if model.tokens != draft.tokens:
        pairs = enumerate(zip(model.tokens, draft.tokens, strict=False))
        where = next((at for at, (a, b) in pairs if a != b), min(len(model.tokens), len(draft.tokens)))
        raise OptionError(
            f"draft {name!r} has another vocabulary (the first difference is token {where}, of {len(model.tokens)} "
            f"and {len(draft.tokens)}); take a smaller model of the same family"
        )
