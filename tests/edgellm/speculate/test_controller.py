"""Drafts that pay: replayed texts must come much faster where they repeat, and no slower where they don't."""

from collections.abc import Sequence

import pytest

from edgellm.engine.speculate import (
    MAX_DRAFT,
    MAX_MATCH,
    Controller,
    CostModel,
    IndexedText,
    LookupProposer,
    SessionTexts,
)
from tests.edgellm.speculate.simulator import Times, replay, teach, times
from tests.edgellm.speculate.texts import CODE, PROSE, diverging, edited, random_tokens, tokens

REPETITIVE = {
    "a copy": (tokens(PROSE), tokens(PROSE)),
    "a copy with every 25th word edited": (tokens(PROSE), edited(tokens(PROSE), 0.04)),
    "code with a name changed": (tokens(CODE), tokens(CODE.replace("amount", "cents").replace("deposit", "pay_in"))),
    "a loop": ([1], 100 * tokens("I am not sure what the answer is. ")),
}
# text, and what it must keep of plain decoding's speed
UNFIT = {
    "prose": ([1], tokens(PROSE), 0.98),
    "random tokens": (random_tokens(500, 50_000), random_tokens(3000, 50_000, seed=1), 0.99),
    "random tokens of few kinds": (random_tokens(500, 30), random_tokens(3000, 30, seed=1), 0.99),
    "repeats that diverge after 6 tokens": (tokens(PROSE), diverging(tokens(PROSE), 3000, 6), 0.97),
    "repeats that diverge after 2 tokens": (tokens(PROSE), diverging(tokens(PROSE), 3000, 2), 0.97),
    "repeats that diverge after 1 token": (
        random_tokens(500, 9999),
        diverging(random_tokens(500, 9999), 3000, 1),
        0.97,
    ),
}
CHEAP, DEAR, LINEAR = times(0.04), times(0.3), times(1.0)  # a further row's part of a step's time


def drafted(controller: Controller, limit: int) -> list[int]:
    """The next draft of at most so many tokens."""
    controller.choose(limit)
    return controller.draft()


def learned(true: Times) -> CostModel:
    """Costs that are known."""
    costs = CostModel()
    teach(costs, true)
    return costs


class Draft:
    """A model that knows the text and is right as often as told, for `seconds` a token."""

    match = MAX_MATCH

    def __init__(self, text: list[int], right: Sequence[bool], seconds: float) -> None:
        self.seconds = seconds
        self._text = [token if good else -1 for token, good in zip(text, right, strict=True)]
        self._done = 0
        self.num_proposed_tokens = 0

    def extend(self, tokens: Sequence[int]) -> None:
        self._done += len(tokens)

    def ask(self, limit: int) -> None:
        pass

    def close(self) -> None:
        pass

    def propose(self, limit: int) -> list[int]:
        self.num_proposed_tokens += limit
        return self._text[self._done : self._done + limit]


@pytest.mark.parametrize("name", REPETITIVE)
def test_text_that_repeats_comes_much_faster(name: str) -> None:
    prompt, answer = REPETITIVE[name]
    assert replay(prompt, answer).speedup >= 2.5
    assert replay(prompt, answer, mode="on").speedup >= 2.5
    assert replay(prompt, answer, true=DEAR).speedup >= 1.3


@pytest.mark.parametrize("name", UNFIT)
def test_text_that_does_not_repeat_comes_no_slower(name: str) -> None:
    prompt, answer, least = UNFIT[name]
    for true in CHEAP, DEAR, LINEAR:
        assert replay(prompt, answer, true=true).speedup >= least


def test_code_with_common_phrases_gains_though_nothing_was_given() -> None:
    assert replay([1], tokens(CODE)).speedup >= 1.4


def test_rows_that_cost_as_much_as_steps_are_not_drafted_when_that_is_known_and_lose_nothing_before() -> None:
    for prompt, answer in REPETITIVE.values():
        assert replay(prompt, answer, true=LINEAR).speedup > 0.99
        assert replay(prompt, answer, true=LINEAR, before=LINEAR).num_drafted_tokens == 0


def test_costs_learned_wrongly_are_put_right_by_the_steps() -> None:
    prompt, answer, _ = UNFIT["random tokens of few kinds"]
    assert replay(prompt, answer, true=DEAR, before=CHEAP).speedup >= 0.98
    prompt, answer = [1], 500 * tokens("I am not sure what the answer is. ")
    right, wrong = replay(prompt, answer, true=CHEAP), replay(prompt, answer, true=CHEAP, before=DEAR)
    assert wrong.speedup >= 0.75 * right.speedup


def test_off_never_drafts_and_on_drafts_what_agrees() -> None:
    costs = learned(LINEAR)
    off, on = Controller([LookupProposer()], costs, "off"), Controller([LookupProposer()], costs, "on")
    for controller in off, on:
        controller.update([*range(50), *range(3)])
    assert drafted(off, MAX_DRAFT) == []
    assert drafted(on, MAX_DRAFT) == [3, 4, 5]
    on.update(range(3, 20))
    assert drafted(on, MAX_DRAFT) == list(range(20, 28))


def test_only_auto_waits_until_a_step_of_one_row_was_seen() -> None:
    costs = CostModel()
    auto, on = Controller([LookupProposer()], costs), Controller([LookupProposer()], costs, "on")
    for controller in auto, on:
        controller.update([*range(50), *range(30)])
    assert drafted(auto, MAX_DRAFT) == [] and drafted(on, MAX_DRAFT)
    costs.observe(1, 80, 0.002)
    assert drafted(auto, MAX_DRAFT)


def test_a_draft_keeps_to_the_limit() -> None:
    for mode in "on", "auto":
        controller = Controller([LookupProposer()], learned(times(0.001)), mode)
        controller.update([*range(100), *range(50)])
        assert drafted(controller, 0) == []
        assert drafted(controller, 3) == [50, 51, 52]
        assert len(drafted(controller, 1000)) <= MAX_DRAFT


def test_cheaper_rows_make_longer_drafts() -> None:
    lengths = []
    for per_row in 0.02, 0.1, 0.3, 1.0:
        controller = Controller([LookupProposer()], learned(times(per_row)))
        controller.update([*range(100), *range(10)])
        lengths.append(len(drafted(controller, MAX_DRAFT)))
    assert lengths == sorted(lengths, reverse=True) and len(set(lengths)) == 4


def test_every_place_of_a_draft_has_its_own_experience() -> None:
    class FirstIsRight:
        match, seconds = 2, 0.0

        def extend(self, tokens: Sequence[int]) -> None:
            pass

        def ask(self, limit: int) -> None:
            pass

        def propose(self, limit: int) -> list[int]:
            return [1, 9, 9][:limit]

        def close(self) -> None:
            pass

    controller = Controller([FirstIsRight()], learned(CHEAP))
    controller.update([0])
    for _ in range(100):
        drafted(controller, MAX_DRAFT)
        controller.update([1, 2])
    assert drafted(controller, MAX_DRAFT) == [1]


def test_past_texts_speed_up_what_the_prompt_does_not_hold() -> None:
    session, answer = SessionTexts(), edited(tokens(PROSE), 0.04)
    for past in tokens(CODE), tokens(PROSE), random_tokens(2000, 300):
        session.add(IndexedText(past))
    assert replay([1], answer, proposers=[LookupProposer(session)]).speedup >= 2.5
    assert replay([1], answer).speedup < 1.2


def test_a_draft_model_is_used_while_it_pays_and_tried_again_after_it_did_not() -> None:
    answer = random_tokens(6000, 50_000)
    always, never = [True] * 6000, [False] * 6000
    good, bad = Draft(answer, always, 1e-4), Draft(answer, never, 1e-4)
    late = Draft(answer, never[:3000] + always[:3000], 1e-4)
    assert replay([], answer, proposers=[good]).speedup > 4
    assert replay([], answer, proposers=[bad]).speedup >= 0.97
    assert bad.num_proposed_tokens < 0.15 * len(answer)
    assert replay([], answer, proposers=[late]).speedup > 1.5


def test_the_proposer_that_promises_most_is_asked() -> None:
    prompt, answer = random_tokens(50, 50_000), tokens(PROSE) + tokens(PROSE)

    def draft() -> Draft:
        return Draft(prompt + answer, [place % 4 != 0 for place in range(len(prompt + answer))], 4e-4)

    both = replay(prompt, answer, proposers=[LookupProposer(), draft()])
    alone = replay(prompt, answer, proposers=[draft()])
    assert alone.speedup > 1.2
    assert both.speedup > 1.2 * alone.speedup and both.speedup > 1.2 * replay(prompt, answer).speedup
