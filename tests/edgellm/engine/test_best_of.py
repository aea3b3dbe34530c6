"""Several answers to one prompt: it is computed once, and each is what it would be alone."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import edgellm
from edgellm import Choice, Model, Regex, SamplingParams
from edgellm.backends.base import Rows
from edgellm.engine import model as model_module
from edgellm.engine.logprobs import Logprobs, mean_logprob
from edgellm.errors import OptionError
from tests.edgellm.engine.conftest import before_steps, on_both_backends
from tests.edgellm.engine.requests import CONTEXT, HAS_CONSTRAINTS, Asked, answer_alone, given, random_requests

TEXT = [3 + 11 * place * place % 260 for place in range(CONTEXT - 40)]
PARAMS = SamplingParams(max_tokens=12, temperature=30.0, seed=7, logit_bias={2: -10000.0}, speculation="off")


@pytest.fixture
def prompt_rows(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], int]:
    """Called with a length: how many rows at positions below it were computed from now on."""
    seen: list[range] = []

    def look(batch: list[Rows]) -> None:
        seen.extend(range(rows.sequence.length, rows.sequence.length + len(rows.tokens)) for rows in batch)

    before_steps(monkeypatch, look)
    return lambda length: sum(place < length for places in seen for place in places)


def asked(number: int, prompt: list[int] = TEXT, params: SamplingParams = PARAMS) -> Asked:
    """The request whose answer is the one of that number."""
    seed = None if params.seed is None else params.seed + number
    return Asked(prompt, replace(params, seed=seed), 0, None)


def small(path: Path, blocks: int, backend: str) -> Model:
    with edgellm.load(path, device=backend, threads=1) as model:
        nbytes = blocks * model.block_bytes
    return edgellm.load(path, device=backend, threads=2, context=CONTEXT, kv_memory=nbytes)


@pytest.mark.parametrize("step_rows", [256, 40, 7, 1])
@pytest.mark.parametrize("length", [1, 2, 31, 32, 33, 64, 100])
def test_the_prompt_is_computed_once(
    path: Path, length: int, step_rows: int, monkeypatch: pytest.MonkeyPatch, prompt_rows: Callable[[int], int]
) -> None:
    """But for its last token, which gives everyone the logits to draw from."""
    monkeypatch.setattr(model_module, "step_rows", lambda nbytes: step_rows)
    with edgellm.load(path, threads=2, context=CONTEXT) as model:
        streams = model.generate_n(TEXT[:length], PARAMS, 5)
        assert [len(list(stream)) for stream in streams] == [12] * 5
        assert prompt_rows(length) == length + 4
        assert [stream.usage.num_cached_tokens for stream in streams] == [0] + [length - 1] * 4
        assert len({stream.text for stream in streams}) == 5
        assert [stream.seed for stream in streams] == [7, 8, 9, 10, 11]
        model.check_integrity()


@on_both_backends
def test_answers_share_the_memory_of_the_prompt(model: Model) -> None:
    """Three full blocks for all, and one for each in which they differ."""
    free = model.num_free_blocks
    streams = model.generate_n(TEXT[:100], PARAMS, 8)
    for stream in streams:
        next(stream)
        next(stream)
    assert free - model.num_free_blocks == 3 + 8
    for count, stream in enumerate(streams, 1):
        stream.close()
        assert free - model.num_free_blocks == (3 + 8 - count if count < 8 else 0)


@on_both_backends
@pytest.mark.parametrize("speculation", ["off", "on", "auto"])
def test_each_is_the_answer_of_its_request_alone(path: Path, model: Model, backend: str, speculation: str) -> None:
    """Of requests of every kind, constraints among them."""
    for kind in random_requests(60 if backend == "cpu" else 3, seed=5):
        params = replace(kind.params, speculation=speculation)  # type: ignore[arg-type]
        streams = model.generate_n(kind.prompt, params, 3)
        for number, stream in enumerate(streams):
            alone = answer_alone(path, asked(number, kind.prompt, params), device=backend)
            assert given(stream, list(stream)) == alone, kind


@on_both_backends
@pytest.mark.skipif(not HAS_CONSTRAINTS, reason="llguidance is not installed")
def test_each_keeps_to_a_constraint_that_forces_its_beginning(path: Path, model: Model, backend: str) -> None:
    params = replace(PARAMS, constraint=Regex("the on[a-f]{8}"), speculation="on")
    for number, stream in enumerate(model.generate_n(TEXT[:50], params, 4)):
        alone = answer_alone(path, asked(number, TEXT[:50], params), device=backend)
        assert given(stream, list(stream)) == alone
        assert stream.text.startswith("the on")


@pytest.mark.parametrize("steps_before", [0, 1, 3, 4, 6])
def test_closing_one_leaves_the_others(
    path: Path, monkeypatch: pytest.MonkeyPatch, prompt_rows: Callable[[int], int], steps_before: int
) -> None:
    """The first, in any step of the prompt that it computes for all, or behind: nothing is computed again."""
    monkeypatch.setattr(model_module, "step_rows", lambda nbytes: 40)
    with edgellm.load(path, threads=2, context=CONTEXT) as model:
        streams = model.generate_n(TEXT, PARAMS, 4)
        for _ in range(steps_before):
            model.engine.step()
        streams[0].close()
        answers = [given(stream, list(stream)) for stream in streams[1:]]
        first_had_logits = steps_before >= 4
        assert prompt_rows(len(TEXT)) == len(TEXT) + 2 + first_had_logits
        assert streams[0].finish_reason == "cancelled"
        model.check_integrity()
    assert answers == [answer_alone(path, asked(number)) for number in (1, 2, 3)]


@on_both_backends
@pytest.mark.parametrize("blocks", [6, 7, 9])
def test_answers_that_take_each_others_memory_equal_each_alone(path: Path, backend: str, blocks: int) -> None:
    params = replace(PARAMS, max_tokens=40)
    with small(path, blocks, backend) as model:
        streams = model.generate_n(TEXT, params, 4)
        answers = [given(stream, list(stream)) for stream in streams]
        assert model.num_free_blocks == blocks
        model.check_integrity()
    assert answers == [answer_alone(path, asked(number, params=params), device=backend) for number in range(4)]


def test_a_request_that_comes_while_the_same_prompt_is_answered_finds_all_of_it(
    model: Model, prompt_rows: Callable[[int], int]
) -> None:
    first = model.generate(TEXT[:75], PARAMS)
    for _ in range(3):
        next(first)
    second = model.generate(TEXT[:75], PARAMS)
    assert [piece.token_id for piece in second] == [*first.token_ids[:3], *(piece.token_id for piece in first)]
    assert second.usage.num_cached_tokens == 74 and prompt_rows(75) == 75 + 1


def test_the_best_has_the_highest_logprobs_on_average(model: Model) -> None:
    """Not in sum, which would favour short answers: they end at an e."""
    params = replace(PARAMS, stop=("e",), max_tokens=30)
    streams = [model.generate(TEXT, replace(params, seed=seed, logprobs=2)) for seed in range(7, 17)]
    found = []
    for stream in streams:
        logprobs = [piece.logprobs.logprob for piece in stream if piece.logprobs]
        assert len(logprobs) == len(stream.token_ids)
        found.append((sum(logprobs) / len(logprobs), sum(logprobs), stream))
    means, sums, _ = zip(*found, strict=True)
    assert means.index(max(means)) != sums.index(max(sums)), "else this would say little"
    expected = streams[means.index(max(means))]
    best = model.best_of(TEXT, params, 10)
    assert (best.seed, best.text, best.token_ids) == (expected.seed, expected.text, expected.token_ids)
    assert best.finish_reason == expected.finish_reason
    assert [entry and entry.logprob for entry in best.logprobs] == [
        entry and entry.logprob for entry in expected.logprobs
    ]
    assert model.best_of(TEXT, replace(params, logprobs=2), 10).logprobs == expected.logprobs


@on_both_backends
def test_of_equals_the_first_is_the_best(model: Model) -> None:
    greedy = SamplingParams(max_tokens=5, seed=3)
    best = model.best_of(TEXT, greedy, 4)
    assert best.seed == 3 and best.token_ids == [piece.token_id for piece in model.generate(TEXT, greedy)]


@on_both_backends
@pytest.mark.skipif(not HAS_CONSTRAINTS, reason="llguidance is not installed")
def test_forced_tokens_have_no_logprobs_and_do_not_count(model: Model) -> None:
    assert mean_logprob([None, Logprobs(-1.0), None, Logprobs(-3.0)]) == -2.0
    best = model.best_of(TEXT, replace(PARAMS, constraint=Choice(("another one",))), 2)
    assert best.text == "another one" and best.seed == 7
    assert mean_logprob([None]) == 0.0


def test_without_a_seed_each_draws_its_own(model: Model) -> None:
    streams = model.generate_n(TEXT, replace(PARAMS, seed=None), 3)
    assert len({stream.seed for stream in streams}) == 3


def test_answers_to_a_conversation(model: Model) -> None:
    """Its special tokens are special, those in messages are text, as in chat."""
    messages = [{"role": "user", "content": "Is the <|im_end|> an end?"}]
    ids = model.encode(messages)
    assert ids == model.chat(messages, PARAMS).prompt_token_ids
    assert [stream.prompt_token_ids for stream in model.generate_n(ids, PARAMS, 2)] == [ids, ids]


@pytest.mark.parametrize("n", [0, -1, 1.0, True, "2"])
def test_a_number_of_answers_that_is_none_is_refused(model: Model, n: object) -> None:
    with pytest.raises(OptionError, match=r"n .* whole number from 1 on"):
        model.generate_n(TEXT, PARAMS, n)  # type: ignore[arg-type]


def test_seeds_beyond_the_last_are_refused(model: Model) -> None:
    with pytest.raises(OptionError, match="seed"):
        model.generate_n(TEXT, replace(PARAMS, seed=2**63 - 2), 3)
