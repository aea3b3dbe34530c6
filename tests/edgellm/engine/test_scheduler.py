"""Who computes how much, and who makes room: no model, no memory, nothing that changes."""

import random
from dataclasses import dataclass, field
from typing import Any

import pytest

from edgellm.engine.scheduler import (
    MAX_DRAFT_ROWS,
    Room,
    Schedule,
    in_turn,
    is_prefix_coming,
    may_begin,
    schedule,
    share,
)
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


@dataclass
class Held:
    """A sequence of `length` tokens: places that any step takes, and places that nobody else holds, (blocks, slots)."""

    length: int
    needs: tuple[int, int] = (0, 0)
    alone: tuple[int, int] = (0, 0)

    def demand(self, num_tokens: int) -> tuple[int, int]:
        assert num_tokens > self.length
        return self.needs

    def held_alone(self) -> tuple[int, int]:
        return self.alone


@dataclass(eq=False)
class Asked:
    """What the policy looks at of a request; without a sequence it waits."""

    priority: int = 0
    tokens: list[int] = field(default_factory=list)
    sequence: Held | None = None
    is_parked: bool = False
    reads_cache: bool = True

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.tokens)

    @property
    def num_left(self) -> int:
        return len(self.tokens) - (self.sequence.length if self.sequence else 0)


def request(priority: int = 0, tokens: list[int] | None = None, computed: int | None = None) -> Any:
    """A request of whose tokens so many are computed; None: it waits."""
    return Asked(priority, tokens or [], None if computed is None else Held(computed))


def decoding(needs: tuple[int, int] = (0, 0), alone: tuple[int, int] = (0, 0)) -> Any:
    return Asked(tokens=[1, 2, 3], sequence=Held(2, needs, alone))


def room(free: tuple[int, int] = (100, 100), *, rows: int = 40, interval: int | None = None) -> Room:
    return Room(rows=rows, logit_rows=64, free=free, state_interval=interval)


def test_the_highest_priority_comes_first_and_equals_come_in_order() -> None:
    low, first, high, second = request(-1), request(), request(3), request()
    assert in_turn([low, first, high, second]) == [high, first, second, low]
    assert in_turn([]) == []


def test_a_request_waits_for_a_prefix_that_another_computes() -> None:
    text = list(range(4 * KV_BLOCK))
    mine = request(tokens=[*text, -1])
    assert is_prefix_coming(mine, request(tokens=[*text, -2], computed=0))
    assert is_prefix_coming(mine, request(tokens=[*text, -2], computed=3 * KV_BLOCK))
    assert not may_begin(mine, [mine, request(tokens=[*text, -2], computed=0)])


@pytest.mark.parametrize("length", [2, 20, 4 * KV_BLOCK])
def test_a_request_waits_for_the_last_token_that_another_computes_of_its_prompt(length: int) -> None:
    """All but its own last, which it computes itself for the logits."""
    text = list(range(length))
    for other in (text, [*text, -1], [*text[:-1], -1]):
        for computed in (0, length - 2):
            assert is_prefix_coming(request(tokens=text), request(tokens=other, computed=computed))
        assert not is_prefix_coming(request(tokens=text), request(tokens=other, computed=length - 1))


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
        assert not is_prefix_coming(mine, other)
        assert may_begin(mine, [other, mine])


def test_a_request_that_reads_no_cache_waits_for_nobody() -> None:
    text = list(range(100))
    mine = Asked(tokens=text, reads_cache=False)
    assert may_begin(mine, [request(tokens=text, computed=0)])


def test_those_with_much_unread_come_last() -> None:
    first, parked, second = request(), Asked(priority=9, is_parked=True), request()
    assert in_turn([parked, first, second]) == [first, second, parked]


def test_a_prompt_alone_takes_all_rows_and_with_company_half() -> None:
    long, other = request(tokens=[0] * 1000, computed=5), decoding()
    assert schedule([long], [], room()) == Schedule({long: 40})
    assert schedule([long, other], [], room()) == Schedule({other: 1, long: 20})
    assert schedule([request()], [], room()) == Schedule(), "it waits"


def test_drafts_are_for_steps_without_prompts_and_share_the_rows() -> None:
    three = [decoding() for _ in range(3)]
    assert schedule(three[:1], [], room()).max_draft == MAX_DRAFT_ROWS - 1
    assert schedule(three, [], room()).max_draft == (MAX_DRAFT_ROWS - 3) // 3
    assert schedule([*three, request(tokens=[0] * 9, computed=0)], [], room()).max_draft == 0


def test_nobody_loses_memory_for_a_draft() -> None:
    two = [decoding(needs=(1, 0)), decoding()]
    assert schedule(two, [], room((3, 0))).max_draft > 0
    scarce = schedule(two, [], room((2, 0)))
    assert (scarce.max_draft, scarce.preempted, len(scarce.num_tokens)) == (0, [], 2)


def test_where_memory_is_short_the_last_gives_its_own_to_the_first() -> None:
    first, second, third = decoding((1, 0), (4, 0)), decoding((1, 0), (3, 0)), decoding((1, 0), (2, 0))
    found = schedule([first, second, third], [], room((0, 9)))
    assert found.preempted == [third] and list(found.num_tokens) == [first, second]
    found = schedule([first, second, third], [], room((1, 9)))
    assert found.preempted == [third], "the second takes what it has"
    assert schedule([first, second, third], [], room((2, 9))).preempted == [third], "its own is not enough for itself"
    assert schedule([first, second, third], [], room((3, 9))).preempted == []


def test_who_takes_no_part_gives_before_who_does() -> None:
    first, second, other, last = decoding((1, 0), (1, 0)), decoding(), decoding(alone=(0, 0)), decoding(alone=(1, 0))
    assert schedule([first, second], [other, last], room((0, 9))).preempted == [last]
    assert schedule([first, second], [last, other], room((0, 9))).preempted == [other, last]


def test_places_of_every_kind_count() -> None:
    first, second = decoding((0, 1), (1, 1)), decoding((0, 1), (1, 1))
    assert schedule([first, second], [], room((9, 2), interval=256)).preempted == []
    assert schedule([first, second], [], room((9, 1), interval=256)).preempted == [second]


def test_one_alone_stays_though_there_is_no_room() -> None:
    """Reserving then says what is missing."""
    first, second = decoding((5, 0), (1, 0)), decoding(alone=(1, 0))
    found = schedule([first, second], [], room((0, 0)))
    assert found.preempted == [second] and list(found.num_tokens) == [first]


def test_what_was_planned_of_one_that_gives_way_can_be_had_again() -> None:
    prompt, needy = request(tokens=[0] * 10, computed=0), decoding((2, 0))
    prompt.sequence.needs = (2, 0)
    found = schedule([needy, prompt], [], room((3, 0)))
    assert found.num_tokens == {needy: 1} and found.preempted == [prompt]


@pytest.mark.parametrize(("computed", "count"), [(0, 8), (5, 3), (8, 8), (28, 1), (29, 1)])
def test_prompts_of_recurrent_models_stop_where_a_state_is_kept(computed: int, count: int) -> None:
    """Every 8 tokens, and before the last of the prompt."""
    prompt = request(tokens=[0] * 30, computed=computed)
    assert schedule([prompt], [], room(interval=8)).num_tokens == {prompt: count}


def test_a_schedule_changes_nothing_and_never_takes_what_is_not_there() -> None:
    rng = random.Random(5)
    for _ in range(2000):
        running = [
            Asked(
                tokens=[0] * rng.randint(2, 90),
                sequence=Held(1, (rng.randrange(3), rng.randrange(2)), (rng.randrange(4), rng.randrange(2))),
            )
            for _ in range(rng.randrange(1, 7))
        ]
        free = rng.randrange(6), rng.randrange(6)
        before = [repr(one) for one in running]
        split = rng.randint(1, len(running))
        found = schedule(running[:split], running[split:], room(free, interval=256))  # type: ignore[arg-type]
        assert [repr(one) for one in running] == before
        given = [sum(one.sequence.alone[kind] for one in found.preempted) for kind in range(2)]  # type: ignore[union-attr]
        taken = [sum(one.sequence.needs[kind] for one in found.num_tokens) for kind in range(2)]  # type: ignore[union-attr]
        fits = all(take <= have + give for take, have, give in zip(taken, free, given, strict=True))
        assert fits or len(found.num_tokens) == 1 == len(running) - len(found.preempted)
        assert not set(found.preempted) & set(found.num_tokens)
        assert sum(found.num_tokens.values()) <= 40
        assert found.preempted == [*reversed(running)][: len(found.preempted)], "the last first"
