"""Logprobs of a prompt's tokens: those of teacher forcing, whatever the chunks, the company and the memory."""

from dataclasses import replace
from pathlib import Path

import pytest

import edgellm
from edgellm import Logprobs, Model, Probe, Regex, SamplingParams
from edgellm.backends.base import Rows
from edgellm.engine import model as model_module
from edgellm.engine import request as request_module
from edgellm.engine.logprobs import logprobs_of
from edgellm.engine.sizes import MAX_LOGIT_ROWS
from edgellm.inspect.probe import Observation
from tests.edgellm.engine.conftest import on_both_backends
from tests.edgellm.engine.requests import CONTEXT, HAS_CONSTRAINTS, given

TEXT = [3 + 13 * place * place % 260 for place in range(CONTEXT - 30)]
PARAMS = SamplingParams(max_tokens=6, temperature=30.0, seed=1, prompt_logprobs=3, speculation="off")
PLAIN = replace(PARAMS, prompt_logprobs=None)


def expected(model: Model, prompt: list[int], top_n: int = 3) -> list[Logprobs]:
    """By teacher forcing."""
    return logprobs_of(model.logits(prompt)[:-1], prompt[1:], top_n)


@pytest.mark.parametrize("step_rows", [256, 64, 33, 5, 1])
@pytest.mark.parametrize("length", [1, 2, 33, len(TEXT)])
def test_they_are_those_of_teacher_forcing_in_chunks_of_any_length(
    path: Path, length: int, step_rows: int, monkeypatch: pytest.MonkeyPatch, steps: list[list[Rows]]
) -> None:
    """And never are there more rows with logits than the buffer has."""
    monkeypatch.setattr(model_module, "step_rows", lambda nbytes: step_rows)
    with edgellm.load(path, threads=2, context=CONTEXT) as model:
        stream = model.generate(TEXT[:length], PARAMS)
        pieces = list(stream)
        assert max(len(rows.logits) for step in steps for rows in step) == min(step_rows, MAX_LOGIT_ROWS, length)
        assert stream.prompt_logprobs == expected(model, TEXT[:length]), "bit by bit"
        assert pieces == list(model.generate(TEXT[:length], PLAIN))


@on_both_backends
@pytest.mark.parametrize("top_n", [0, 1, 20])
def test_as_many_of_the_likeliest_come_as_were_asked_for(model: Model, top_n: int) -> None:
    stream = model.generate(TEXT[:40], replace(PARAMS, prompt_logprobs=top_n, logprobs=2))
    list(stream)
    assert stream.prompt_logprobs == expected(model, TEXT[:40], top_n)
    assert all(entry is not None and len(entry.top) == 2 for entry in stream.logprobs)


def test_nothing_is_kept_or_computed_unless_asked_for(model: Model, steps: list[list[Rows]]) -> None:
    stream = model.generate(TEXT, replace(PLAIN, max_tokens=1))
    list(stream)
    assert stream.prompt_logprobs == [] and stream.logprobs == [None]
    assert sum(len(rows.logits) for step in steps for rows in step) == 1


def test_they_are_the_same_in_company(path: Path, steps: list[list[Rows]]) -> None:
    """Of thirty that ask for them and ten that do not, in one engine; a step has logits for some rows only."""
    with edgellm.load(path, threads=2, context=CONTEXT) as model:
        prompts = [[5 + number, *TEXT[: 20 + 4 * number]] for number in range(30)]
        streams = [model.generate(prompt, PARAMS) for prompt in prompts]
        others = [model.generate(prompt[1:], PLAIN) for prompt in prompts[::3]]
        texts = [given(stream, list(stream)) for stream in streams + others]
        assert max(sum(len(rows.logits) for rows in step) for step in steps) <= MAX_LOGIT_ROWS
        assert [stream.prompt_logprobs for stream in streams] == [expected(model, prompt) for prompt in prompts]
    with edgellm.load(path, threads=1, context=CONTEXT) as model:
        alone = [model.generate(prompt, PLAIN) for prompt in [*prompts, *(prompt[1:] for prompt in prompts[::3])]]
        assert texts == [given(stream, list(stream)) for stream in alone]


@on_both_backends
def test_such_a_prompt_reads_no_cache_but_fills_it(model: Model) -> None:
    for _ in range(2):
        stream = model.generate(TEXT[:75], PARAMS)
        list(stream)
        assert stream.usage.num_cached_tokens == 0 and len(stream.prompt_logprobs) == 74
        assert stream.cache_report is not None
        assert model.explain(stream.cache_report) == (
            "0 tokens cached (0 of them from disk); all of it was computed for its log-probabilities"
        )
    other = model.generate(TEXT[:75], PLAIN)
    list(other)
    assert other.usage.num_cached_tokens == 74


def test_another_waits_for_such_a_prompt_but_it_waits_for_none(model: Model, steps: list[list[Rows]]) -> None:
    first, scored, other = (model.generate(TEXT, params) for params in (PLAIN, PARAMS, PLAIN))
    assert list(first) == list(scored) == list(other)
    assert len(steps[0]) == 2
    assert (scored.usage.num_cached_tokens, other.usage.num_cached_tokens) == (0, len(TEXT) - 1)


@on_both_backends
@pytest.mark.parametrize("blocks", [6, 7, 11])
def test_they_are_the_same_where_memory_is_taken_back(path: Path, backend: str, blocks: int) -> None:
    """What a prompt loses is computed again, and nothing is there twice."""
    with edgellm.load(path, device=backend, threads=1) as model:
        nbytes = blocks * model.block_bytes
    with edgellm.load(path, device=backend, threads=2, context=CONTEXT, kv_memory=nbytes) as model:
        prompts = [[5 + number, *TEXT[:150]] for number in range(5 if backend == "cpu" else 2)]
        streams = [model.generate(prompt, PARAMS, priority=number % 2) for number, prompt in enumerate(prompts)]
        for stream in streams:
            list(stream)
        assert [stream.prompt_logprobs for stream in streams] == [expected(model, prompt) for prompt in prompts]
        model.check_integrity()


@on_both_backends
def test_they_are_the_same_behind_an_interrupt(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of whoever drives, while those of another are read; the step is taken back, and computed again."""
    with model.generate(TEXT[:50], PARAMS) as driver, model.generate(TEXT[1:], PARAMS) as stream:
        calls = []

        def interrupted(*args: object) -> list[Logprobs]:
            calls.append(args)
            if len(calls) == 4:  # the second step's, of the stream
                raise KeyboardInterrupt
            return logprobs_of(*args)  # type: ignore[arg-type]

        monkeypatch.setattr(request_module, "logprobs_of", interrupted)
        with pytest.raises(KeyboardInterrupt):
            list(driver)
        assert driver.finish_reason == "cancelled"
        list(stream)
        assert stream.prompt_logprobs == expected(model, TEXT[1:])


def test_answers_to_one_prompt_show_the_same(model: Model, steps: list[list[Rows]]) -> None:
    streams = model.generate_n(TEXT[:100], PARAMS, 3)
    for stream in streams:
        list(stream)
    prompts_rows = sum(len(rows.logits) for step in steps for rows in step) - 3 * PARAMS.max_tokens  # type: ignore[operator]
    assert prompts_rows == 99, "computed once"
    wanted = expected(model, TEXT[:100])
    assert [stream.prompt_logprobs for stream in streams] == [wanted] * 3
    assert model.best_of(TEXT[:100], PARAMS, 3).prompt_logprobs == wanted


@on_both_backends
@pytest.mark.skipif(not HAS_CONSTRAINTS, reason="llguidance is not installed")
def test_forced_tokens_of_the_answer_are_not_the_prompts(model: Model) -> None:
    stream = model.generate(TEXT[:50], replace(PARAMS, constraint=Regex("the on[ab]")))
    list(stream)
    assert stream.prompt_logprobs == expected(model, TEXT[:50])
    assert len(stream.logprobs) == len(stream.token_ids)


@on_both_backends
def test_a_probe_sees_the_same_beside_them(model: Model) -> None:
    seen: list[Observation] = []
    stream = model.generate(TEXT, replace(PARAMS, max_tokens=2), probe=Probe(seen.append, logits=True))
    list(stream)
    assert stream.prompt_logprobs == expected(model, TEXT)
    logits = [look.logits for look in seen]
    assert all(rows is not None for rows in logits)
    assert sum(len(rows) for rows in logits if rows is not None) == len(TEXT) + 1
