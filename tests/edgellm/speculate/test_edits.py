"""Copies with changes: once seen, a change is expected wherever the source says the same again."""

import pytest

from edgellm.engine.speculate import IndexedText, LookupProposer, SessionTexts
from tests.edgellm.speculate.simulator import replay
from tests.edgellm.speculate.texts import CODE, tokens

SOURCE = [*range(10, 20), 1, *range(20, 30), 1, *range(30, 40), 2, *range(40, 50)]


def copying(text: list[int], source: list[int] = SOURCE) -> LookupProposer:
    """A proposer that has seen the source, then the text token by token."""
    proposer = LookupProposer()
    proposer.extend([*source, 0])
    for token in text:
        proposer.extend([token])
    return proposer


def test_behind_a_token_that_differs_the_source_goes_on() -> None:
    assert copying([*range(10, 20), 7]).propose(4) == [20, 21, 22, 23]


def test_where_one_token_replaced_one_the_next_that_agrees_resumes_the_copy() -> None:
    assert copying([*range(10, 20), 7, 20]).match == 8


def test_otherwise_one_token_that_agrees_may_be_chance_and_two_are_none() -> None:
    assert copying([*range(10, 20), 7, 22]).match == 0
    proposer = copying([*range(10, 20), 7, 22, 23])
    assert (proposer.match, proposer.propose(2)) == (8, [24, 25])


def test_another_change_than_the_one_expected_is_no_place_to_guess_from() -> None:
    source = [*range(10, 20), 1, *range(20, 30), 1, *range(30, 40)]
    proposer = copying([*range(10, 20), 7, 8, *range(20, 30), 7], source)
    assert proposer.propose(2) == [8, 30]
    proposer.extend([9])
    assert proposer.match == 0


def test_a_name_that_changed_once_is_expected_to_change_again() -> None:
    proposer = copying([*range(10, 20), 7, 20, 21])
    assert proposer.propose(11) == [*range(22, 30), 7, 30, 31]


@pytest.mark.parametrize(
    ("old", "new"), [([1], [7]), ([1], [7, 8]), ([1, 3], [7]), ([1, 3, 4, 5], [6, 7, 8, 9]), ([1], [])], ids=str
)
def test_an_edit_may_have_any_few_tokens_on_both_sides(old: list[int], new: list[int]) -> None:
    source = [*range(10, 20), *old, *range(20, 30), *old, *range(30, 40)]
    proposer = copying([*range(10, 20), *new, 20, 21], source)
    assert proposer.propose(12) == [*range(22, 30), *new, *range(30, 40)][:12]


def test_what_is_inserted_once_is_not_expected_everywhere() -> None:
    proposer = copying([*range(10, 15), *range(15, 20), 7, 1, 20])
    assert proposer.propose(12) == [*range(21, 30), 1, 30, 31]


def test_an_edit_that_does_not_come_is_forgotten() -> None:
    proposer = copying([*range(10, 20), 7, *range(20, 30), 1, 30, 31])
    assert proposer.propose(12) == [*range(32, 40), 2, 40, 41, 42]
    assert copying([*range(10, 20), 7, *range(20, 30), 1, 30], [*SOURCE, 1, *range(50, 60)]).propose(23)[-3:] == [
        1, 50, 51
    ]  # fmt: skip


def test_the_end_of_a_prompt_teaches_edits_as_an_answer_does() -> None:
    proposer = LookupProposer()
    proposer.extend([*SOURCE * 3, 0, *range(10, 20), 7, 20, 21])
    assert proposer.propose(11) == [*range(22, 30), 7, 30, 31]


def test_a_past_text_is_copied_with_changes_too() -> None:
    session = SessionTexts()
    session.add(IndexedText(SOURCE))
    proposer = LookupProposer(session)
    for token in [*range(10, 20), 7, 20, 21]:
        proposer.extend([token])
    assert proposer.propose(11) == [*range(22, 30), 7, 30, 31]


def test_a_copy_that_does_not_come_back_is_given_up() -> None:
    proposer = copying([*range(10, 20), *range(100, 110), 20, 21])
    assert proposer.propose(1) == [22]
    assert proposer.match == 2  # found again, not resumed


def test_a_renamed_variable_costs_a_step_or_two_not_one_at_every_place() -> None:
    copy, renamed = tokens(CODE), tokens(CODE.replace("amount", "cents"))
    assert CODE.count("amount") > 10
    assert replay(copy, renamed).steps <= replay(copy, copy).steps + 2
