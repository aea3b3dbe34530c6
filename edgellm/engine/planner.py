"""What the next step computes: whose turn it is, how many rows each gets, and where its memory comes from."""

from collections.abc import Sequence as Seq

from edgellm.backends.base import Rows
from edgellm.engine.request import Request
from edgellm.engine.scheduler import in_turn, share, should_wait
from edgellm.errors import EdgeLLMError
from edgellm.kernels.ops import KV_BLOCK
from edgellm.memory.kv import KVCache
from edgellm.memory.pool import KVMemoryError
from edgellm.memory.prefix import PrefixCache

MAX_RUNNING = 32  # requests in a step
MAX_DRAFT_ROWS = 16  # rows of a step with drafts: beyond, a row costs as much as a step of its own


class Planner:
    """Plans the steps of one engine, by whose leave alone it touches requests and memory."""

    def __init__(
        self, cache: KVCache, prefixes: PrefixCache, *, context: int, max_rows: int, max_logit_rows: int,
        measured_tokens: int,
    ) -> None:  # fmt: skip
        """`measured_tokens` are those that measuring a step takes memory for."""
        self.requests: list[Request] = []  # that are not over, as they came
        self._cache, self._prefixes, self._context = cache, prefixes, context
        self._max_rows, self._max_logit_rows, self._measured_tokens = max_rows, max_logit_rows, measured_tokens

    def check_fits(self, request: Request) -> None:
        """Errors: KVMemoryError for a prompt that would never have room, with all memory its own."""
        needed = -(-min(len(request.tokens), self._context) // KV_BLOCK)  # what is more is shifted out first
        if needed > self._cache.num_blocks:
            raise KVMemoryError(
                f"the prompt's {len(request.tokens)} tokens need {needed} KV blocks, there are "
                f"{self._cache.num_blocks}; load the model with more kv_memory"
            )

    def plan(self) -> list[tuple[Request, Rows]]:
        """Requests and what is computed of them, with room reserved; some may end here for lack of memory."""
        turn = in_turn(self.requests)[: min(MAX_RUNNING, self._max_rows)]
        decoding: list[Request] = []
        filling: list[Request] = []
        for request in turn:
            self._admit(request, turn)
            if request.sequence is not None:
                (filling if request.num_left > 1 else decoding).append(request)
        budgets = self._budgets(len(decoding), filling) if filling else {}
        work = []
        for request in [*decoding, *filling]:
            if request.sequence is None:  # another needed its memory
                continue
            draft = self._draft_length(len(decoding)) if request.drafts and not filling else 0
            try:
                rows = request.rows(self._to_next_state(request, budgets.get(request, 1)), draft)
            except EdgeLLMError as error:  # a constraint that came to a limit
                request.error = error
                continue
            if rows.tokens and self._reserve(request, len(rows.tokens)):
                work.append((request, rows))
        return [(request, rows) for request, rows in work if request.sequence is not None]

    def _budgets(self, num_decoding: int, filling: Seq[Request]) -> dict[Request, int]:
        """Rows of a step for prompts: with company fewer, so that nobody waits long for the step's end."""
        rows = self._max_rows
        num_running = num_decoding + len(filling)
        budget = min(rows if num_running == 1 else -(-rows // 2), rows - num_decoding)
        scored = [request for request in filling if not request.reads_cache]
        # All that run may have a row with logits; what is left of those is for prompts that want them of every row
        most = dict.fromkeys(scored, 1 + (self._max_logit_rows - num_running) // max(len(scored), 1))
        wanted = [min(request.num_left, most.get(request, rows)) for request in filling]
        return dict(zip(filling, share(wanted, budget), strict=True))

    def _to_next_state(self, request: Request, budget: int) -> int:
        """Rows up to the next recurrent state that the prefix cache keeps: only a step's end leaves one."""
        if not self._cache.is_recurrent or request.sequence is None or request.num_left == 1:
            return budget
        start, interval, last = (
            request.sequence.length,
            self._cache.layout.state_interval,
            request.num_prompt_tokens - 1,
        )
        places = (start // interval * interval + interval, last)
        return min(budget, *(place - start for place in places if place > start))

    def _draft_length(self, num_decoding: int) -> int:
        """Tokens that each may draft. None where memory is short: nobody loses any to a guess or a measurement."""
        if self._cache.num_free * KV_BLOCK < self._measured_tokens:
            return 0
        return max(min(MAX_DRAFT_ROWS, self._max_rows) - num_decoding, 0) // num_decoding

    def _admit(self, request: Request, turn: Seq[Request]) -> None:
        if request.params.context_policy == "shift" and len(request.tokens) > self._context:
            self.give_back(request)
            request.shift()
        if request.sequence is None and not (request.reads_cache and should_wait(request, turn)):
            request.sequence, report = self._prefixes.begin(request.tokens, reads=request.reads_cache)
            request.report = request.report or report

    def _reserve(self, request: Request, count: int) -> bool:
        """Room for `count` tokens more, taken from those whose turn comes last: they compute again what they lose."""
        assert request.sequence is not None
        while True:
            try:
                request.sequence.reserve(request.sequence.length + count)
                return True
            except KVMemoryError as error:
                holders = [other for other in in_turn(self.requests) if other.sequence is not None]
                if holders == [request]:
                    request.error = error
                    return False
                self.give_back(holders[-1])
                if holders[-1] is request:
                    return False

    def give_back(self, request: Request) -> None:
        """Its memory, which the prefix cache keeps while nobody needs it."""
        if request.sequence is not None:
            # More is computed than the text has, where it ends or was interrupted within a draft
            request.sequence.rewind(min(request.sequence.length, len(request.tokens)))
            self._prefixes.end(request.sequence, request.tokens[: request.sequence.length])
            request.sequence = None
