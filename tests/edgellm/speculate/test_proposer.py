"""What a lookup proposes."""

import re

import pytest

from edgellm.engine.speculate import IndexedText, LookupProposer, Proposer, SessionTexts
from tests.edgellm.speculate.texts import CODE, PROSE, edited, random_tokens, tokens


def after(text: list[int], session: SessionTexts | None = None) -> LookupProposer:
    proposer = LookupProposer(session)
    proposer.extend(text)
    return proposer


def test_it_proposes_what_followed_the_longest_match() -> None:
    proposer: Proposer = after([1, 2, 3, 4, 5, 2, 3, 9, 9, 1, 2, 3])
    assert (proposer.match, proposer.propose(3)) == (3, [4, 5, 2])
    proposer.extend([4])
    assert (proposer.match, proposer.propose(3)) == (4, [5, 2, 3])
    proposer.extend([7])
    assert (proposer.match, proposer.propose(3)) == (0, [])


def test_of_equal_matches_it_takes_the_last() -> None:
    assert after([1, 2, 3, 0, 1, 2, 4, 0, 0, 1, 2]).propose(1) == [4]


def test_a_loop_goes_round() -> None:
    assert after([1, 2, 3, 1, 2]).propose(8) == [3, 1, 2, 3, 1, 2, 3, 1]
    assert after([6, 6, 6]).propose(3) == [6, 6, 6]


def test_nothing_is_proposed_where_nothing_repeats() -> None:
    for text in [], [1], [1, 2, 3], [1, 2, 3, 2]:
        proposer = after(text)
        assert (proposer.match, proposer.propose(5)) == (0, [])


WORDS = tokens(re.sub(r"\s+", "", CODE))[:150]  # of none too many for a search to look at all


@pytest.mark.parametrize("text", [random_tokens(400, 30), WORDS, WORDS + edited(WORDS, 0.1)], ids=len)
def test_what_was_proposed_may_come_in_one_piece_or_in_many(text: list[int]) -> None:
    session = SessionTexts()
    session.add(IndexedText(edited(text, 0.2, seed=5)))
    by_token, by_piece = LookupProposer(session), LookupProposer(session)
    done = 0
    while done < len(text):
        draft, right = by_piece.propose(5), 0
        while draft[right : right + 1] == text[done + right : done + right + 1] != []:
            right += 1
        piece = text[done : done + right + 1]
        by_piece.extend(piece)
        for token in piece:
            by_token.extend([token])
        assert by_token.propose(15) == by_piece.propose(15)
        assert min(by_token.match, 32) == min(by_piece.match, 32)
        done += len(piece)


def test_where_no_copy_was_left_the_text_alone_decides() -> None:
    text = random_tokens(400, 30)
    proposer = LookupProposer()
    for place, token in enumerate(text):
        proposer.extend([token])
        searched = after(text[: place + 1])
        assert (proposer.match, proposer.propose(15)) == (searched.match, searched.propose(15))


def test_past_texts_are_proposed_from_to_their_end() -> None:
    session = SessionTexts()
    session.add(IndexedText([4, 5, 6, 7, 8]))
    proposer = after([1, 5, 6], session)
    assert (proposer.match, proposer.propose(9)) == (2, [7, 8])
    proposer.extend([7])
    assert (proposer.match, proposer.propose(9)) == (3, [8])
    proposer.extend([8])
    assert (proposer.match, proposer.propose(9)) == (0, [])


def test_the_own_text_comes_before_a_past_one_that_agrees_as_long() -> None:
    session = SessionTexts()
    session.add(IndexedText([1, 2, 9]))
    assert after([1, 2, 3, 1, 2], session).propose(1) == [3]
    assert after([1, 2], session).propose(1) == [9]


def test_a_past_text_that_is_written_again_counts_as_used() -> None:
    session, text = SessionTexts(), tokens(PROSE)
    old, new = IndexedText(text[:60]), IndexedText(text[60:120])
    session.add(old)
    session.add(new)
    proposer = after(text[20:26], session)
    assert session.recent() == [new, old]
    proposer.extend(text[26:28])
    assert session.recent() == [old, new]


def test_texts_added_later_are_for_later_requests() -> None:
    session = SessionTexts()
    proposer = after([1, 2], session)
    session.add(IndexedText([1, 2, 3]))
    assert proposer.propose(1) == []
    assert after([1, 2], session).propose(1) == [3]
