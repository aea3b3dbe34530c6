"""Choosing a token: the distribution is the reference's, the draw a function of the seed."""

import numpy as np
import pytest

from edgellm.engine.params import SamplingParams
from edgellm.engine.sampler import Sampler
from edgellm.kernels import ops, reference
from edgellm.kernels.jit import Library
from edgellm.memory.buffers import address, aligned_zeros

VOCABULARY = 37


def draw(library: Library, sampler: Sampler, logits: np.ndarray) -> int:
    """One token; the kernel changes its copy of the logits."""
    row = aligned_zeros(-(-len(logits) // 32) * 32, np.float32)
    row[: len(logits)] = logits
    samplers = np.array([sampler.address], np.int64)
    words = dict.fromkeys(ops.STEP.names, 0) | {"logit_count": 1, "samplers": address(samplers)}
    record = ops.SAMPLE.pack(
        kernel=0, barrier=0, logits=address(row), stride=len(row), vocabulary=len(logits)
    )  # fmt: skip
    library.entry("sample")(address(record), address(ops.STEP.pack(**words)), 0, 1)
    return sampler.take()


def random_logits(seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(VOCABULARY) * 2).astype(np.float32)


def test_greedy_takes_the_first_of_the_largest(library: Library) -> None:
    logits = np.full(VOCABULARY, -3.0, np.float32)
    logits[[9, 20, 33]] = -1.0  # padding behind the vocabulary holds zeros, and must not win
    assert draw(library, Sampler(SamplingParams(), VOCABULARY, []), logits) == 9


def test_logits_that_are_no_numbers_choose_a_token_all_the_same(library: Library) -> None:
    logits = np.full(VOCABULARY, np.nan, np.float32)
    for temperature in (0.0, 1.0):
        sampler = Sampler(SamplingParams(temperature=temperature, top_k=3, seed=0), VOCABULARY, [])
        assert 0 <= draw(library, sampler, logits) < VOCABULARY


CASES = [
    {"temperature": 1.0},
    {"temperature": 0.5},
    {"temperature": 1.5, "top_k": 5},
    {"temperature": 1.0, "top_p": 0.6},
    {"temperature": 1.0, "min_p": 0.2},
    {"temperature": 0.8, "top_k": 8, "top_p": 0.7, "min_p": 0.1},
    {"temperature": 2.0, "top_k": 1},
    {"temperature": 1.0, "top_p": 1e-6},
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_draws_follow_the_distribution(library: Library, case: dict[str, float]) -> None:
    """Chi-squared over 4,000 draws, against its 99.9 % point by Wilson and Hilferty's approximation."""
    logits = random_logits(1)
    expected = reference.sample(logits, **case)
    sampler = Sampler(SamplingParams(**case, seed=7), VOCABULARY, [])
    draws = 4000
    counts = np.bincount([draw(library, sampler, logits) for _ in range(draws)], minlength=VOCABULARY)
    assert not counts[expected == 0].any(), "a token outside the kept ones was drawn"
    likely = expected * draws >= 5
    observed, wanted = counts[likely], expected[likely] * draws
    freedom = max(likely.sum() - 1, 1)
    limit = freedom * (1 - 2 / (9 * freedom) + 3.09 * np.sqrt(2 / (9 * freedom))) ** 3
    assert ((observed - wanted) ** 2 / wanted).sum() < limit


def test_a_seed_gives_the_same_draws_and_another_gives_others(library: Library) -> None:
    params = [SamplingParams(temperature=1.0, seed=seed) for seed in (1, 1, 2)]
    logits = random_logits(2)
    first, again, other = (
        [draw(library, sampler, logits) for _ in range(20)] for sampler in (Sampler(p, VOCABULARY, []) for p in params)
    )
    assert first == again != other


def test_penalties_change_logits_as_the_reference_does(library: Library) -> None:
    """Greedy on logits so that the winner changes with every penalty; the answer so far is what was drawn."""
    logits = random_logits(3)
    params = SamplingParams(repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.3)
    prompt = [int(np.argmax(logits)), 5, 5]
    sampler, answer = Sampler(params, VOCABULARY, prompt), list[int]()
    for _ in range(30):
        expected = reference.penalize(logits, prompt, answer, repetition=1.3, presence=0.4, frequency=0.3)
        answer.append(draw(library, sampler, logits))
        assert answer[-1] == np.argmax(expected)
    assert len(set(answer)) > 5


def test_a_bias_bans_and_forces(library: Library) -> None:
    logits = random_logits(4)
    best = int(np.argmax(logits))
    assert draw(library, Sampler(SamplingParams(logit_bias={best: -100}), VOCABULARY, []), logits) != best
    assert draw(library, Sampler(SamplingParams(logit_bias={36: 100}), VOCABULARY, []), logits) == 36
