"""What the next step computes: whose turn it is, how many tokens of each, and who makes room. Nothing here has effects.

in_turn      the order: the highest priority first, then as they came
may_begin    whether one that waits gets memory now, with what the prefix cache knows of its prompt
schedule     what each of those with memory computes, and who gives its memory back for that
"""

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from itertools import repeat
from operator import gt, sub
from typing import NamedTuple

from edgellm.engine.request import Request
from edgellm.kernels.ops import KV_BLOCK
from edgellm.memory.tree import common_prefix

MAX_RUNNING = 32  # requests in a step
MAX_DRAFT_ROWS = 16  # rows of a step with drafts: beyond, a row costs as much as a step of its own


class Room(NamedTuple):
    """What a step may take."""

    rows: int
    logit_rows: int
    free: tuple[int, ...]  # places that nobody holds, pool by pool, those of recurrent states last: KVCache.free
    state_interval: int | None  # tokens between the recurrent states that are kept; None where there are none


@dataclass
class Schedule:
    num_tokens: dict[Request, int] = field(default_factory=dict)  # to compute of each; who decodes comes first
    max_draft: int = 0  # tokens that each of those who decode may draft
    preempted: list[Request] = field(default_factory=list)  # who give their memory back, before anybody takes any


def in_turn(requests: Seq[Request]) -> list[Request]:
    """By priority, the highest first, then as they came; last are those whose readers have too much unread."""
    if len(requests) < 2:  # the reader alone, who waits for every microsecond
        return list(requests)
    return sorted(requests, key=lambda request: (request.is_parked, -request.priority))


def may_begin(request: Request, turn: Seq[Request]) -> bool:
    """Whether a request without memory gets some now: not while another computes what it would have to.

    `turn` are those that take part in the next step: nobody may wait for one that does not.
    """
    return not (request.reads_cache and any(is_prefix_coming(request, other) for other in turn))


def schedule(turn: Seq[Request], others: Seq[Request], room: Room) -> Schedule:
    """What a step computes of those at work, in turn. `others` hold memory and take no part.

    Where memory is short, the others give theirs back first, the last before all, then who comes last in turn. Nobody
    loses memory for the sake of a draft.
    """
    running = [request for request in turn if request.sequence is not None]
    decoding = [request for request in running if request.num_left <= 1]
    filling = [request for request in running if request.num_left > 1]
    result = Schedule()
    budgets = _budgets(len(decoding), filling, room) if filling else {}
    for request in decoding:
        result.num_tokens[request] = 1
    for request in filling:
        if count := _to_next_state(request, budgets[request], room):
            result.num_tokens[request] = count
    free = list(room.free)
    if not _has_plenty(result.num_tokens, room):
        result.preempted = _make_room(result.num_tokens, [*running, *others], free)
    if decoding and not filling:
        result.max_draft = _draft_length(len(decoding), free, room)
    return result


def share(wanted: Seq[int], budget: int) -> list[int]:
    """Rows for each: everyone gets what all can have alike, and who wants less leaves the rest to the others.

    So a short prompt beside a long one is computed in one step, whoever came first. Rows that cannot be dealt evenly
    go to those who want least, of equals to the first in turn.
    """
    given = [0] * len(wanted)
    order = sorted(range(len(wanted)), key=wanted.__getitem__)
    for place, at in enumerate(order):
        given[at] = min(wanted[at], -(-budget // (len(order) - place)))
        budget -= given[at]
    return given


def is_prefix_coming(request: Request, other: Request) -> bool:
    """Whether another computes a prefix of this one: all but its last token, or a block more than is there."""
    if other.sequence is None or other.num_left <= 1:
        return False
    wanted = len(request.tokens) - 1
    common = min(common_prefix(request.tokens, other.tokens), wanted)
    return common - other.sequence.length >= (1 if common == wanted else KV_BLOCK)


def _budgets(num_decoding: int, filling: Seq[Request], room: Room) -> dict[Request, int]:
    """Rows of a step for prompts: fewer beside other requests, so that nobody waits long for the step's end."""
    num_running = num_decoding + len(filling)
    budget = min(room.rows if num_running == 1 else -(-room.rows // 2), room.rows - num_decoding)
    scored = [request for request in filling if not request.reads_cache]
    # All that run may have a row with logits; what is left of those is for prompts that want them of every row
    most = dict.fromkeys(scored, 1 + (room.logit_rows - num_running) // max(len(scored), 1))
    wanted = [min(request.num_left, most.get(request, room.rows)) for request in filling]
    return dict(zip(filling, share(wanted, budget), strict=True))


def _to_next_state(request: Request, budget: int, room: Room) -> int:
    """Rows up to the next recurrent state that the prefix cache keeps: only a step's end leaves one."""
    if room.state_interval is None or request.sequence is None:
        return budget
    start = request.sequence.length
    interval = room.state_interval
    last = request.num_prompt_tokens - 1
    places = (start // interval * interval + interval, last)
    return min(budget, *(place - start for place in places if place > start))


def _has_plenty(num_tokens: dict[Request, int], room: Room) -> bool:
    """Whether there is room whatever each request shares and holds, which is not looked at then."""
    blocks = sum(num_tokens.values()) // KV_BLOCK + 3 * len(num_tokens)  # one begun, one copied, one for a draft
    return min(room.free[:-1]) >= blocks and (room.state_interval is None or room.free[-1] >= len(num_tokens))


def _make_room(num_tokens: dict[Request, int], holders: list[Request], free: list[int]) -> list[Request]:
    """Who gives memory back, so that what is left of `num_tokens` has room in `free`; both are brought up to date.

    One that is alone and still has no room stays: reserving says what is missing.
    """
    preempted: list[Request] = []
    taken: dict[Request, tuple[int, ...]] = {}
    for request, count in list(num_tokens.items()):
        if request not in num_tokens:  # another needed its memory
            continue
        assert request.sequence is not None
        needed = request.sequence.demand(request.sequence.length + count)
        while any(map(gt, needed, free)) and holders != [request]:
            victim = holders.pop()
            assert victim.sequence is not None
            preempted.append(victim)
            num_tokens.pop(victim, None)
            free[:] = [
                have + own + back
                for have, own, back in zip(
                    free, victim.sequence.held_alone(), taken.pop(victim, repeat(0)), strict=False
                )
            ]
            if victim is request:
                break
        else:
            taken[request] = needed
            free[:] = map(sub, free, needed)
    return preempted


def _draft_length(num_decoding: int, free: Seq[int], room: Room) -> int:
    """Tokens that each may draft: none where one would need memory that there is not, since each may begin a block."""
    if min(free[:-1]) < num_decoding:
        return 0
    return max(min(MAX_DRAFT_ROWS, room.rows) - num_decoding, 0) // num_decoding
