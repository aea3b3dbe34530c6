"""Who computes how much, by itself: no model, no memory."""

import random
from types import SimpleNamespace
from typing import Any

import pytest

from edgellm.engine.scheduler import in_turn, share, should_wait
from edgellm.kernels.ops import KV_BLOCK


@pytest.mark.parametrize(
    ("wanted", "budget", "given"),
    [
        ([], 10, []),
        ([5], 10, [5]),
        ([50], 10, [10]),
        ([100, 3], 10, [7, 3]),
        ([3, 100], 10, [3, 7]),
        ([9, 9, 9], 10, [4, 3, 3]),
        ([9, 9, 9], 2, [1, 1, 0]),
        ([1, 117, 3, 0, 4], 6, [1, 1, 2, 0, 2]),
        ([500, 1, 1], 2, [0, 1, 1]),
        ([0, 5], 4, [0, 4]),
        ([5, 5], 0, [0, 0]),
    ],
)
def test_rows_are_shared_alike(wanted: list[int], budget: int, given: list[int]) -> None:
    assert share(wanted, budget) == given


def test_sharing_is_max_min_fair() -> None:
    """Nothing is left while somebody wants it, and who gets less than wanted has at most one row less than anybody."""
    rng = random.Random(0)
    for _ in range(3000):
        wanted = [rng.choice([0, 1, rng.randrange(10), rng.randrange(600)]) for _ in range(rng.randrange(9))]
        budget = rng.randrange(rng.choice([1, 10, 600]))
        given = share(wanted, budget)
        assert sum(given) == min(budget, sum(wanted))
        assert all(0 <= got <= want for got, want in zip(given, wanted, strict=True))
        short = [got for got, want in zip(given, wanted, strict=True) if got < want]
        assert all(got <= least + 1 for least in short for got in given), (wanted, budget, given)


def request(priority: int = 0, tokens: list[int] | None = None, computed: int | None = None) -> Any:
    """What the policy looks at of a request, of which `computed` tokens are in the cache; None: it waits."""
    tokens = tokens or []
    sequence = None if computed is None else SimpleNamespace(length=computed)
    return SimpleNamespace(priority=priority, tokens=tokens, sequence=sequence, num_left=len(tokens) - (computed or 0))


def test_the_highest_priority_comes_first_and_equals_come_in_order() -> None:
    low, first, high, second = request(-1), request(), request(3), request()
    assert in_turn([low, first, high, second]) == [high, first, second, low]
    assert in_turn([]) == []


def test_a_request_waits_for_a_prefix_that_another_computes() -> None:
    text = list(range(4 * KV_BLOCK))
    mine = request(tokens=[*text, -1])
    assert should_wait(mine, [mine, request(tokens=[*text, -2], computed=0)])
    assert should_wait(mine, [request(tokens=[*text, -2], computed=3 * KV_BLOCK)])


@pytest.mark.parametrize("length", [2, 20, 4 * KV_BLOCK])
def test_a_request_waits_for_the_last_token_that_another_computes_of_its_prompt(length: int) -> None:
    """All but its own last, which it computes itself for the logits."""
    text = list(range(length))
    for other in (text, [*text, -1], [*text[:-1], -1]):
        for computed in (0, length - 2):
            assert should_wait(request(tokens=text), [request(tokens=other, computed=computed)])
        assert not should_wait(request(tokens=text), [request(tokens=other, computed=length - 1)])


def test_a_request_does_not_wait_where_there_is_nothing_to_share() -> None:
    text = list(range(4 * KV_BLOCK))
    mine = request(tokens=[*text, -1])
    for other in (
        mine,
        request(tokens=[*text, -2]),  # waits itself
        request(tokens=[*text[:-1], -2, -2], computed=3 * KV_BLOCK),  # less than a block is to come
        request(tokens=[*text, -2], computed=4 * KV_BLOCK),  # decodes
        request(tokens=[-1, *text], computed=0),
        request(tokens=[*text[: KV_BLOCK - 1], -1, -1], computed=0),
    ):
        assert not should_wait(mine, [other])
