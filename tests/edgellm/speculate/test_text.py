"""Where the end of a text stood before, and which past texts are kept."""

import threading

import pytest

from edgellm.engine.speculate import IndexedText, SessionTexts
from edgellm.engine.speculate.text import LOOKS, MAX_MATCH, MIN_MATCH, longest_match
from tests.edgellm.speculate.texts import PROSE, edited, random_tokens, tokens


def naive(end: list[int], text: list[int], own: bool) -> tuple[int, int]:
    """(length, place) of the longest end that stood in the text with something behind, the last of equals."""
    best = (0, 0)
    for place in range(1, len(text)):
        length = 0
        while length < min(place, len(end), MAX_MATCH) and text[place - 1 - length] == end[-1 - length]:
            length += 1
        if length >= MIN_MATCH and length >= best[0]:
            best = (length, place)
    return best


@pytest.mark.parametrize("vocabulary", [12, 40, 1000])
def test_the_longest_match_is_that_of_a_search_everywhere(vocabulary: int) -> None:
    text, past = random_tokens(240, vocabulary), random_tokens(240, vocabulary, seed=1)
    text[100:130], past[50:100], text[200:230] = text[10:40], text[40:90], past[60:90]
    own, other = IndexedText(), IndexedText(past)
    for count, token in enumerate(text, 1):
        own.extend([token])
        for source, where, is_own in (text[:count], own, True), (past, other, False):
            length, place = naive(text[:count], source, is_own)
            match = longest_match(own, [where])
            assert (match.length, match.place) == (length, place) if match else length == 0


def test_equal_matches_are_the_first_text_s_and_longer_ones_win() -> None:
    end = IndexedText([5, 1, 2, 3])
    short, long, same = IndexedText([9, 2, 3, 7]), IndexedText([1, 2, 3, 8]), IndexedText([1, 2, 3, 9])
    assert longest_match(end, [short, long, same]) == (3, long, 3)
    assert longest_match(end, [short, same, long]) == (3, same, 3)
    assert longest_match(end, [short, long], above=2) == (3, long, 3)
    assert longest_match(end, [short, long], above=3) is None
    assert longest_match(end, [IndexedText([2, 3])]) is None  # nothing stands behind it


def test_a_search_looks_at_so_many_places_and_no_more() -> None:
    for between, length in (LOOKS - 1, 4), (LOOKS, 2):
        text = [7, 8, 1, 2, *(token for other in range(between) for token in (100 + other, 1, 2)), 7, 8, 1, 2]
        match = longest_match(end := IndexedText(text), [end])
        assert match and match.length == length


def test_a_text_in_pieces_is_the_text_in_one() -> None:
    text = tokens(PROSE)
    pieces = IndexedText()
    for first in range(0, len(text), 7):
        pieces.extend(text[first : first + 7])
    whole = IndexedText(text)
    assert (pieces.tokens, pieces.earlier, pieces.last) == (whole.tokens, whole.earlier, whole.last)


def test_past_texts_are_bounded_and_the_least_recently_used_leaves_first() -> None:
    session = SessionTexts(max_tokens=30)
    first, second, third, fourth = (IndexedText([number] * 10) for number in range(4))
    for text in first, second, third:
        session.add(text)
    assert session.recent() == [third, second, first]
    session.use(first)
    session.add(fourth)
    assert session.recent() == [fourth, first, third]
    session.use(second)  # gone
    session.add(IndexedText([9] * 31))
    assert session.recent() == [fourth, first, third]
    session.add(IndexedText([9] * 30))
    assert [len(text) for text in session.recent()] == [30]


def test_a_text_that_continues_another_takes_its_place() -> None:
    session, turn = SessionTexts(), tokens(PROSE)
    other = IndexedText(edited(turn, 0.5))
    session.add(IndexedText(turn[:100]))
    session.add(other)
    longer = IndexedText(turn[:200])
    session.add(longer)
    assert session.recent() == [longer, other]


def test_past_texts_may_come_from_several_threads() -> None:
    session = SessionTexts(max_tokens=500)

    def work(number: int) -> None:
        for count in range(200):
            text = IndexedText([number, count] * 5)
            session.add(text)
            session.use(text)
            assert sum(map(len, session.recent())) <= 500

    threads = [threading.Thread(target=work, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(session.recent()) == 50
