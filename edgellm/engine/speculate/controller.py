"""How long a draft pays: what became of those before, against what a longer step costs."""

from collections.abc import Sequence
from typing import Literal

from edgellm.engine.speculate.costs import MAX_ROWS, CostModel
from edgellm.engine.speculate.proposer import Proposer
from edgellm.engine.speculate.text import MAX_MATCH, MIN_MATCH

Mode = Literal["off", "on", "auto"]

MAX_DRAFT = MAX_ROWS - 1  # tokens
ON_DRAFT = 8  # tokens at most with mode "on", and no more than agree
MARGIN = 1.05  # times as fast as without, that a draft must promise: to make one takes time as well, and may be wrong
HOPELESS = 0.02  # chance of a token to be kept, below which no longer draft is thought of
PROBES = 0.01  # of the time without drafts goes into trying proposers that take time themselves

# Matches of so many tokens and more are one kind; how often the next token is right before anything is known of it,
# as it was in documentation, code and edited copies of both
PRIORS = {MIN_MATCH: 0.3, 3: 0.4, 4: 0.5, 5: 0.65, 7: 0.75, 10: 0.8, 16: 0.9, MAX_MATCH: 0.95}
PRIOR_WEIGHT = 1.0  # tokens that a prior counts for
DECAY = 0.97  # of the weight of what was seen, with every further token of the kind: some 30 of them count

KINDS = [sum(match >= least for least in list(PRIORS)[1:]) for match in range(MAX_MATCH + 1)]  # by match


class Controller:
    """Drafts for one request, as long as they make it faster.

    controller.update(prompt)
    while ...:
        controller.choose(limit)
        draft = controller.draft()
        tokens = ...  # what the step of [last token, *draft] gives: the draft while it is right, and one more
        controller.update(tokens)
    """

    def __init__(self, proposers: Sequence[Proposer], costs: CostModel, mode: Mode = "auto") -> None:
        """Mode "on" drafts whenever the first proposer that has something has it, "off" never."""
        self._records = [] if mode == "off" else [_Record(proposer) for proposer in proposers]
        self._costs = costs
        self._mode = mode
        self._num_tokens = 0
        self._credit = 0.0  # seconds that probes may cost
        self._chosen: _Record | None = None
        self._length = 0  # of the draft that it was chosen for

    def choose(self, limit: int) -> None:
        """Decide on the next draft, of at most `limit` and MAX_DRAFT tokens; none where that is fastest."""
        self._chosen, self._length, best = None, 0, 0.0
        ready = [record for record in self._records if record.proposer.match]
        for record in ready:
            speed, length = self._plan(record, min(limit, MAX_DRAFT))
            if length and speed > best:
                self._chosen = record
                self._length = length
                best = speed
        if ready and self._chosen is None and limit:
            self._chosen = self._probe()
            self._length = 1
        if self._chosen is not None:
            self._chosen.proposer.ask(self._length)

    def draft(self) -> list[int]:
        """The tokens to verify after the last, of the proposer that was chosen."""
        draft: list[int] = []
        for record in self._records:
            if record.proposer.match:
                # One token further than needed, where it is free, tells how a draft would have fared or gone on.
                count = (self._length if record is self._chosen else 0) + (record.proposer.seconds == 0)
                proposal = record.propose(count)
                if record is self._chosen:
                    draft = proposal[: self._length]
        return draft

    def close(self) -> None:
        """The text is over."""
        for record in self._records:
            record.proposer.close()

    def update(self, tokens: Sequence[int]) -> None:
        """The text goes on with `tokens`: the prompt, then what every step gave."""
        self._num_tokens += len(tokens)
        for record in self._records:
            if record.proposal:
                record.learn(tokens)
            record.proposer.extend(tokens)

    def _plan(self, record: "_Record", limit: int) -> tuple[float, int]:
        """(tokens per second, tokens to draft) at best."""
        match = record.proposer.match
        each = record.proposer.seconds
        if not limit:
            return 0.0, 0
        if self._mode == "on":
            return 1.0, min(limit, match, ON_DRAFT)
        if not self._costs.is_known:
            return 0.0, 0
        seconds = self._costs.seconds(self._num_tokens - 1)
        best = MARGIN / seconds[0]
        length = 0
        expected = kept = 1.0  # tokens that the step gives; chance that the draft's last one is among them
        for count in range(1, limit + 1):
            kept *= record.probability(match + count - 1)
            expected += kept
            speed = expected / (seconds[count] + count * each)
            if speed > best:
                best = speed
                length = count
            if kept < HOPELESS:
                break
        return best, length

    def _probe(self) -> "_Record | None":
        """A proposer to try with one token though it promises nothing, when enough time was saved for that."""
        for record in self._records:
            if record.proposer.match and record.proposer.seconds and self._costs.is_known:
                seconds = self._costs.seconds(self._num_tokens - 1)
                price = seconds[1] - seconds[0] + record.proposer.seconds
                self._credit += PROBES * seconds[0]
                if self._credit >= price:
                    self._credit -= price
                    return record
        return None


class _Record:
    """A proposer, and how often the next token was right by kind of match: Beta-Bernoulli estimates that forget."""

    def __init__(self, proposer: Proposer) -> None:
        self.proposer = proposer
        self._right = [PRIOR_WEIGHT * prior for prior in PRIORS.values()]
        self._seen = [PRIOR_WEIGHT] * len(PRIORS)
        self._match, self.proposal = 0, list[int]()  # not yet compared

    def probability(self, match: int) -> float:
        """That the token after a match is right."""
        kind = KINDS[min(match, MAX_MATCH)]
        return self._right[kind] / self._seen[kind]

    def propose(self, count: int) -> list[int]:
        self._match = self.proposer.match
        self.proposal = self.proposer.propose(count) if count else []
        return self.proposal

    def learn(self, tokens: Sequence[int]) -> None:
        """Compare what was proposed with what came, which is never more than what was right and one token."""
        for ahead, (proposed, token) in enumerate(zip(self.proposal, tokens, strict=False)):
            kind = KINDS[min(self._match + ahead, MAX_MATCH)]
            self._right[kind] = DECAY * self._right[kind] + (proposed == token)
            self._seen[kind] = DECAY * self._seen[kind] + 1
        self.proposal = []
