"""Replays a text whose end is known against given times of steps: no model, no clock, the same result every time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgellm.engine.speculate import MAX_DRAFT, Controller, CostModel, LookupProposer, Mode, Proposer

Times = Callable[[int, int], float]  # rows, depth -> seconds


def times(per_row: float, plain: float = 2e-3) -> Times:
    """A step of `plain` seconds, `per_row` of that for every further row, and some more with depth."""
    return lambda rows, depth: plain * (1 + per_row * (rows - 1)) * (1 + depth / 8000)


SMALL_MODEL = times(0.04)


def teach(costs: CostModel, true: Times, count: int = 100) -> None:
    """Steps of all sizes, many times: then the costs are the true ones."""
    for _ in range(count):
        costs.observe(1, 0, true(1, 0))
        for rows in range(2, MAX_DRAFT + 2):
            costs.observe(rows, 0, true(rows, 0))


@dataclass
class Replay:
    speedup: float  # over plain decoding
    steps: int
    num_drafted_tokens: int
    num_accepted_tokens: int


def replay(
    prompt: list[int],
    answer: list[int],
    *,
    proposers: Sequence[Proposer] | None = None,
    mode: Mode = "auto",
    true: Times = SMALL_MODEL,
    before: Times | None = None,
    slow_prompt: bool = False,
) -> Replay:
    """Decode the answer. The costs are learned from it alone, or from many drafts `before` with these times."""
    proposers = [LookupProposer()] if proposers is None else proposers
    costs = CostModel(1 / 8000)  # what times() adds with depth
    if before is not None:
        teach(costs, before)
    controller = Controller(proposers, costs, mode)
    controller.update(prompt)
    costs.observe(
        max(len(prompt), 8 if slow_prompt else 0), 0, 5.0 if slow_prompt else true(len(prompt), 0), is_prompt=True
    )
    controller.update(answer[:1])
    done, seconds, result = 1, 0.0, Replay(0.0, 0, 0, 0)
    while done < len(answer):
        depth, limit = len(prompt) + done - 1, len(answer) - done - 1
        controller.choose(limit)
        draft = controller.draft()
        assert len(draft) <= min(limit, MAX_DRAFT)
        right = 0
        while right < len(draft) and draft[right] == answer[done + right]:
            right += 1
        spent = true(1 + len(draft), depth) + sum(proposer.seconds for proposer in proposers) * len(draft)
        costs.observe(1 + len(draft), depth, true(1 + len(draft), depth))
        controller.update(answer[done : done + right + 1])
        done += right + 1
        seconds += spent
        result.steps += 1
        result.num_drafted_tokens += len(draft)
        result.num_accepted_tokens += right
    plain = sum(true(1, len(prompt) + place - 1) for place in range(1, len(answer)))
    result.speedup = plain / seconds
    return result
