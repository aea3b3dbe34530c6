"""A request gives the same bits alone and in any company, with drafts and without, in any memory."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import edgellm
from edgellm import Model, SamplingParams
from edgellm.engine import model as model_module
from edgellm.engine.constrain import Regex
from tests.edgellm.engine.requests import (
    CONTEXT,
    HAS_CONSTRAINTS,
    VOCABULARY,
    Asked,
    Given,
    answer,
    answer_alone,
    answer_together,
    assert_equal,
    random_requests,
)  # fmt: skip

REQUESTS = random_requests(1000, seed=1)
FEW = REQUESTS[:200]
NAIVE = REQUESTS[:20]  # for the backend that takes its time
only_on_cpu = pytest.mark.parametrize("backend", ["cpu"], indirect=True)


@pytest.fixture(scope="module", params=["cpu", "naive"])
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def requests(backend: str) -> list[Asked]:
    """What is tried in many ways."""
    return FEW if backend == "cpu" else NAIVE[:8]


@pytest.fixture(scope="module")
def alone(path: Path, backend: str, _session_home: None) -> list[Given]:
    asked = REQUESTS if backend == "cpu" else NAIVE
    return [answer_alone(path, one, device=backend) for one in asked]


def run_together(path: Path, requests: list[Asked], *, streams: int = 8, **options: object) -> list[Given]:
    """With all memory free at the end."""
    with edgellm.load(path, context=CONTEXT, **options) as model:  # type: ignore[arg-type]
        free = model.num_free_blocks
        answers = answer_together(model, requests, streams=streams)
        assert model.num_free_blocks == free
        model.check_integrity()
    return answers


def kv_bytes(path: Path, blocks: int) -> int:
    with edgellm.load(path, threads=1) as model:
        return blocks * model.block_bytes


@only_on_cpu
def test_the_requests_are_of_every_kind(alone: list[Given]) -> None:
    """Else the equalities below would say little."""
    reasons = Counter(given.finish_reason for given in alone)
    assert reasons["stop"] > 50 and reasons["length"] > 300
    assert sum(given.num_dropped > 0 for given in alone) > 10
    assert len({given.text for given in alone}) > 500


def test_a_thousand_requests_together_equal_each_alone(path: Path, backend: str, alone: list[Given]) -> None:
    """On the naive backend twenty."""
    requests = REQUESTS[: len(alone)]
    assert_equal(requests, run_together(path, requests, device=backend, threads=2, streams=14), alone)


@only_on_cpu
@pytest.mark.parametrize("threads", [1, 3, 8])
def test_threads_do_not_change_a_bit(path: Path, alone: list[Given], threads: int) -> None:
    assert_equal(FEW, run_together(path, FEW, threads=threads), alone[: len(FEW)])


def test_an_int8_cache_gives_the_same_together_and_alone(
    path: Path, backend: str, requests: list[Asked], _session_home: None
) -> None:
    kind = {"kv_cache_dtype": "int8", "device": backend}
    alone = [answer_alone(path, asked, **kind) for asked in requests]
    assert_equal(requests, run_together(path, requests, threads=2, **kind), alone)


@pytest.mark.parametrize("blocks", [6, 7, 12])
def test_requests_that_take_each_others_memory_equal_each_alone(
    path: Path, backend: str, requests: list[Asked], alone: list[Given], blocks: int
) -> None:
    """Memory for hardly more than one of the 24 that want some."""
    together = run_together(path, requests, device=backend, threads=2, kv_memory=kv_bytes(path, blocks))
    assert_equal(requests, together, alone[: len(requests)])


@pytest.mark.parametrize("rows", [1, 5, 20, 60])
def test_chunks_of_prompts_equal_the_whole(
    path: Path, backend: str, requests: list[Asked], alone: list[Given], rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_module, "step_rows", lambda nbytes: rows)
    together = run_together(path, requests, device=backend, threads=2, streams=14)
    assert_equal(requests, together, alone[: len(requests)])


def test_drafts_change_no_text(
    path: Path, backend: str, requests: list[Asked], alone: list[Given], _session_home: None
) -> None:
    """Greedy and sampled, one after the other, where drafts are longest; and many of them are right."""
    accepted = 0
    with edgellm.load(path, device=backend, threads=2, context=CONTEXT) as model:
        for asked, expected in zip(requests, alone, strict=False):
            stream = model.generate(asked.prompt, replace(asked.params, speculation="on"))
            assert list(stream) == expected.pieces, asked
            accepted += stream.usage.num_accepted_tokens
    assert accepted > len(requests) / 2


@only_on_cpu
@pytest.mark.skipif(not HAS_CONSTRAINTS, reason="llguidance is not installed")
def test_drafts_that_reach_what_a_constraint_forces_change_no_text(model: Model) -> None:
    """What is forced takes no draw, drafted or not; the prompt has the form already, so that drafts reach far."""
    prompt = model.tokenize("acexyzw" * 6)
    drafted = 0
    for seed in range(40):
        params = SamplingParams(max_tokens=60, temperature=2.0, seed=seed, constraint=Regex("([ab][cd][ef]xyzw){6}"))
        plain = answer(model, Asked(prompt, replace(params, speculation="off"), 0, None))
        stream = model.generate(prompt, replace(params, speculation="on"))
        assert list(stream) == plain.pieces
        drafted += stream.usage.num_drafted_tokens
    assert drafted > 20


@only_on_cpu
def test_drafts_do_not_change_how_often_tokens_are_drawn(model: Model) -> None:
    """Chi-squared, of the token behind a draft that is often wrong, over seeds; the prompt repeats itself."""
    draws = 250
    bias = dict.fromkeys(range(10, 14), 100.0)
    prompt = [10, 11, 12, 13, 11, 12, 10, 13] * 2
    counts = {"on": np.zeros(4), "off": np.zeros(4)}
    drafted = 0
    for seed in range(draws):
        for mode, base in (("on", 0), ("off", 10**6)):
            params = SamplingParams(
                max_tokens=30, temperature=30.0, logit_bias=bias, seed=base + seed, speculation=mode  # type: ignore[arg-type]
            )  # fmt: skip
            stream = model.generate(prompt, params)
            list(stream)
            drafted += stream.usage.num_drafted_tokens
            for token in stream.token_ids[9:]:
                if token in bias:
                    counts[mode][token - 10] += 1
    assert drafted > draws
    table = np.array(list(counts.values()))
    expected = table.sum(1, keepdims=True) * table.sum(0) / table.sum()
    assert ((table - expected) ** 2 / expected).sum() < 16.3  # three degrees of freedom: once in a thousand times


def test_the_same_request_twice_gives_the_same(model: Model, requests: list[Asked]) -> None:
    for asked in requests[: len(requests) // 4]:
        assert answer(model, asked) == answer(model, asked)


def test_logits_are_the_same_beside_a_request(model: Model) -> None:
    text = [token % VOCABULARY for token in range(5, 100)]
    expected = model.logits(text)
    with model.generate(text, SamplingParams(max_tokens=20)) as stream:
        next(stream)
        assert np.array_equal(model.logits(text), expected)
