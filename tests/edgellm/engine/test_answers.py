"""Answers as values, options by name, lists of prompts, and where an answer ends."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

import edgellm
from edgellm import Answer, JsonObject, Model, SamplingParams
from edgellm.backends.base import Rows
from edgellm.errors import OptionError
from tests.edgellm.engine.conftest import on_both_backends
from tests.edgellm.engine.requests import HAS_CONSTRAINTS

PROMPT = [5, 80, 90, 100, 7]
LETTER, OTHER = 90, 91
PARAMS = SamplingParams(max_tokens=12, temperature=0.9, seed=4, ignore_eos=True)


def test_a_result_is_what_the_stream_shows(model: Model) -> None:
    stream = model.generate(PROMPT, PARAMS)
    pieces = list(stream)
    answer = model.generate(PROMPT, PARAMS).result()
    assert isinstance(answer, Answer)
    assert answer.text == str(answer) == stream.text == "".join(piece.text for piece in pieces)
    assert answer.token_ids == stream.token_ids == [piece.token_id for piece in pieces]
    assert (answer.finish_reason, answer.stop_reason) == ("length", None)
    assert answer.prompt_token_ids == PROMPT
    assert answer.usage.num_completion_tokens == 12
    assert answer.timings.queue_ms is not None and answer.timings.decode_tokens_per_second
    assert answer.seed == 4
    assert model.complete(PROMPT, PARAMS).token_ids == answer.token_ids
    assert asyncio.run(model.generate(PROMPT, PARAMS).result_async()).token_ids == answer.token_ids


def test_a_result_after_some_pieces_is_all_of_the_answer(model: Model) -> None:
    stream = model.generate(PROMPT, PARAMS)
    next(stream)
    assert stream.result().token_ids == model.complete(PROMPT, PARAMS).token_ids


def test_an_answer_that_was_cancelled_says_so(model: Model) -> None:
    stream = model.generate(PROMPT, PARAMS)
    first = next(stream).token_id
    stream.close()
    answer = stream.result()
    assert (answer.finish_reason, answer.token_ids) == ("cancelled", [first])


def test_options_may_be_named_and_win_over_params(model: Model) -> None:
    by_name = model.complete(PROMPT, max_tokens=12, temperature=0.9, seed=4, ignore_eos=True)
    assert by_name.token_ids == model.complete(PROMPT, PARAMS).token_ids
    assert model.complete(PROMPT, PARAMS, max_tokens=3).token_ids == by_name.token_ids[:3]
    assert model.complete(PROMPT, max_tokens=2).usage.num_completion_tokens <= 2


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"max_token": 3}, r"no sampling option 'max_token'; did you mean max_tokens\?"),
        ({"temperature": -1.0}, r"temperature -1.0"),
        ({"zzz": 3}, r"no sampling option 'zzz'; must be one of: max_tokens, "),
    ],
)
def test_options_that_make_no_sense_are_refused(model: Model, options: dict[str, object], match: str) -> None:
    for call in (model.generate, model.complete, model.best_of, model.generate_n):
        with pytest.raises(OptionError, match=match):
            call(PROMPT, **options)
    with pytest.raises(OptionError, match=match):
        model.generate_many([PROMPT], **options)
    with pytest.raises(OptionError, match=r"params \{'max_tokens': 3\} must be SamplingParams"):
        model.generate(PROMPT, {"max_tokens": 3})  # type: ignore[arg-type]


def test_many_prompts_are_answered_together_as_each_alone(model: Model, steps: list[list[Rows]]) -> None:
    prompts = [[*PROMPT, number] for number in range(5, 12)]
    each = [replace(PARAMS, seed=number) for number in range(len(prompts))]
    alone = [model.complete(prompt, asked).token_ids for prompt, asked in zip(prompts, each, strict=True)]
    steps.clear()
    assert [answer.token_ids for answer in model.generate_many(prompts, each)] == alone
    assert len(steps) < 2 * 12
    assert [answer.token_ids for answer in model.generate_many(prompts[:1], PARAMS, seed=0)] == alone[:1]
    assert model.generate_many([]) == []


def test_one_bad_prompt_of_many_leaves_none_under_way(model: Model) -> None:
    with pytest.raises(OptionError, match="the prompt is empty"):
        model.generate_many([PROMPT, [], PROMPT], PARAMS)
    assert model.engine.num_requests == 0 or model.num_free_blocks
    with pytest.raises(OptionError, match="there are 1 prompts and 2 params"):
        model.generate_many([PROMPT], [PARAMS, PARAMS])


@pytest.fixture
def eos(model: Model) -> int:
    """A token that ends texts, which the model is then made to choose."""
    return min(model.tokenizer.stop_ids)


@on_both_backends
def test_an_end_token_ends_and_is_named(model: Model, eos: int) -> None:
    answer = model.complete(PROMPT, logit_bias={eos: 1000.0}, max_tokens=9)
    assert (answer.token_ids, answer.text, answer.finish_reason, answer.stop_reason) == ([eos], "", "stop", eos)


@on_both_backends
def test_end_tokens_may_be_ignored(model: Model, eos: int) -> None:
    answer = model.complete(PROMPT, logit_bias={eos: 1000.0}, max_tokens=9, ignore_eos=True)
    assert (answer.token_ids, answer.finish_reason) == ([eos] * 9, "length")


@on_both_backends
def test_other_tokens_may_end_an_answer_too(model: Model, eos: int) -> None:
    bias = {LETTER: 1000.0}
    answer = model.complete(PROMPT, logit_bias=bias, max_tokens=9, stop_token_ids=[LETTER])
    assert (answer.token_ids, answer.text, answer.stop_reason) == ([LETTER], "", LETTER)
    answer = model.complete(PROMPT, logit_bias=bias, max_tokens=9, stop_token_ids=[OTHER])
    assert answer.finish_reason == "length"
    with pytest.raises(OptionError, match="stop_token_ids 100000 is not a token of the vocabulary"):
        model.complete(PROMPT, stop_token_ids=[100000])


@on_both_backends
@pytest.mark.parametrize("speculation", ["off", "on"])
def test_no_end_comes_before_min_tokens(model: Model, eos: int, speculation: str) -> None:
    """Nor does a token of `stop_token_ids`, drafted or not; then what is likeliest comes, the end."""
    bias = {eos: 1000.0, LETTER: 900.0, OTHER: 800.0}
    params = SamplingParams(logit_bias=bias, max_tokens=30, speculation=speculation)  # type: ignore[arg-type]
    assert model.complete(PROMPT, params, min_tokens=7).token_ids == [*[LETTER] * 7, eos]
    held = model.complete(PROMPT, params, min_tokens=12, stop_token_ids=[LETTER])
    assert held.token_ids == [*[OTHER] * 12, eos]
    assert model.complete(PROMPT, params, min_tokens=0).token_ids == [eos]


def test_the_text_of_stop_that_ended_an_answer_is_named(model: Model) -> None:
    text = model.detokenize([LETTER])
    answer = model.complete(PROMPT, logit_bias={LETTER: 1000.0}, stop=["never", text * 3], max_tokens=9)
    assert (answer.text, answer.stop_reason, answer.finish_reason) == ("", text * 3, "stop")


@pytest.mark.skipif(not HAS_CONSTRAINTS, reason="llguidance is not installed")
def test_a_form_that_is_complete_ends_before_min_tokens(model: Model) -> None:
    answer = model.complete(PROMPT, constraint=edgellm.Choice(["ab"]), min_tokens=20, max_tokens=40)
    assert answer.text == "ab"
    with pytest.raises(OptionError, match="ignore_eos"):
        SamplingParams(constraint=JsonObject(), ignore_eos=True)


@on_both_backends
def test_functions_may_change_the_logits(model: Model) -> None:
    """They see the answer so far, and what they leave is sampled as if the model had said it."""
    seen: list[list[int]] = []

    def alternate(token_ids: list[int], logits: NDArray[np.float32]) -> None:
        seen.append(token_ids)
        assert logits.shape == (model.network.vocabulary,) and logits.dtype == np.float32
        logits[:] = -np.inf
        logits[LETTER + len(token_ids) % 2] = 1.0

    other = model.generate([*PROMPT, 9], PARAMS)
    answer = model.complete(PROMPT, max_tokens=6, logits_processors=[alternate])
    assert answer.token_ids == [LETTER, OTHER] * 3
    assert seen == [answer.token_ids[:count] for count in range(6)]
    assert other.result().token_ids == model.complete([*PROMPT, 9], PARAMS).token_ids, "company is left as it is"


def test_a_function_that_does_what_a_bias_does_gives_the_same(model: Model) -> None:
    def bias(token_ids: list[int], logits: NDArray[np.float32]) -> None:
        logits[LETTER] += np.float32(2.5)

    expected = model.complete(PROMPT, PARAMS, logit_bias={LETTER: 2.5}).token_ids
    assert model.complete(PROMPT, PARAMS, logits_processors=[bias]).token_ids == expected


def test_a_function_that_fails_ends_its_own_answer_only(model: Model) -> None:
    def fail(token_ids: list[int], logits: NDArray[np.float32]) -> None:
        if len(token_ids) == 3:
            raise ZeroDivisionError("mine")

    other = model.generate([*PROMPT, 9], PARAMS)
    bad = model.generate(PROMPT, PARAMS, logits_processors=[fail])
    assert other.result().token_ids == model.complete([*PROMPT, 9], PARAMS).token_ids
    with pytest.raises(ZeroDivisionError, match="mine"):
        bad.result()
    assert len(bad.token_ids) == 3 and bad.status is edgellm.Status.FAILED


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"stop": "x"}, r"stop 'x' must be a list"),
        ({"stop_token_ids": 3}, r"stop_token_ids 3 must be a list or a tuple"),
        ({"stop_token_ids": [-1]}, r"stop_token_ids -1 is not a token id"),
        ({"stop_token_ids": "1"}, r"stop_token_ids '1' must be a list"),
        ({"ignore_eos": 1}, r"ignore_eos 1 must be True or False"),
        ({"min_tokens": 5, "max_tokens": 4}, r"min_tokens 5 is more than max_tokens 4"),
        ({"min_tokens": -1}, r"min_tokens -1"),
        ({"logits_processors": [3]}, r"logits_processors 3 must be functions"),
    ],
)
def test_wrong_ends_are_refused(options: dict[str, object], match: str) -> None:
    with pytest.raises(OptionError, match=match):
        SamplingParams(**options)  # type: ignore[arg-type]


def test_lists_are_as_good_as_tuples() -> None:
    lists = SamplingParams(stop=["a", "b"], sampler_order=["top_k"], dry_sequence_breakers=["\n"], stop_token_ids=[3])
    tuples = SamplingParams(
        stop=("a", "b"), sampler_order=("top_k",), dry_sequence_breakers=("\n",), stop_token_ids=(3,)
    )
    assert lists == tuples and hash(lists.stop) == hash(tuples.stop)
