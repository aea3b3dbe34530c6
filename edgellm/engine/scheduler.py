"""Who computes how much in the next step. Policy only: no memory, no kernels."""

from collections.abc import Sequence as Seq

from edgellm.engine.request import Request
from edgellm.engine.speculate import common_prefix
from edgellm.kernels.ops import KV_BLOCK


def in_turn(requests: Seq[Request]) -> list[Request]:
    """By priority, the highest first, then as they came."""
    if len(requests) < 2:  # the reader alone, who waits for every microsecond
        return list(requests)
    return sorted(requests, key=lambda request: -request.priority)


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


def should_wait(request: Request, turn: Seq[Request]) -> bool:
    """Whether another computes what this one would have to: all but its last token, or a block more than is there.

    `turn` are those that take part in the next step: nobody may wait for one that does not.
    """
    wanted = len(request.tokens) - 1
    for other in turn:
        if other.sequence is not None and other.num_left > 1:
            common = min(common_prefix(request.tokens, other.tokens), wanted)
            if common - other.sequence.length >= (1 if common == wanted else KV_BLOCK):
                return True
    return False
