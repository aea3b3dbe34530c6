"""Choosing a token: the distribution is the reference's, the draw a function of the seed."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from edgellm.engine.params import SAMPLER_ORDER
from edgellm.kernels import jit, reference
from edgellm.kernels.jit import Library
from edgellm.kernels.targets import ISAS, host_target, target_for
from tests.kernels.sampling import draw, random_logits, records, run_sample, sampler_of

VOCABULARY = 37
Logits = np.ndarray
TWINS: dict[str, Callable[[Logits, dict[str, float]], Logits]] = {
    "top_k": lambda logits, options: reference.top_k(logits, int(options["top_k"])),
    "typical_p": lambda logits, options: reference.typical_p(logits, options["typical_p"]),
    "top_p": lambda logits, options: reference.top_p(logits, options["top_p"]),
    "min_p": lambda logits, options: reference.min_p(logits, options["min_p"]),
    "xtc": lambda logits, options: reference.xtc(logits, options["xtc_threshold"]),
    "temperature": lambda logits, options: reference.temperature(logits, options["temperature"]),
}


def twin(logits: Logits, options: dict[str, float], order: Sequence[str] = SAMPLER_ORDER) -> Logits:
    """What the reference makes of logits; XTC acts where a threshold is given."""
    for name in order:
        option = "xtc_threshold" if name == "xtc" else name
        if option in options:
            logits = TWINS[name](logits, options)
    return logits


def test_greedy_takes_the_first_of_the_largest(library: Library) -> None:
    logits = np.full(VOCABULARY, -3.0, np.float32)
    logits[[9, 20, 33]] = -1.0  # padding behind the vocabulary holds zeros, and must not win
    assert draw(library, sampler_of(VOCABULARY), logits) == 9


def test_greedy_is_greedy_whatever_truncates(library: Library) -> None:
    logits = random_logits(0, VOCABULARY)
    options = {"top_k": 5, "typical_p": 0.1, "xtc_probability": 1.0, "xtc_threshold": 0.01, "mirostat": 2}
    assert draw(library, sampler_of(VOCABULARY, **options), logits) == np.argmax(logits)


ODD = {"top_k": 3, "top_p": 0.5, "typical_p": 0.5, "min_p": 0.1, "xtc_probability": 1.0, "mirostat": 2}


@pytest.mark.parametrize("name", ["temperature", *ODD])
@pytest.mark.parametrize("value", [np.nan, -np.inf, np.inf])
def test_logits_that_are_no_numbers_choose_a_token_all_the_same(library: Library, name: str, value: float) -> None:
    for share in (1, 2):
        logits = random_logits(0, VOCABULARY)
        logits[::share] = value
        options = {name: ODD[name]} if name in ODD else {}
        assert 0 <= draw(library, sampler_of(VOCABULARY, temperature=1.0, seed=0, **options), logits) < VOCABULARY


CASES = [
    {"temperature": 1.0},
    {"temperature": 0.5},
    {"temperature": 1e-40},
    {"temperature": 1.5, "top_k": 5},
    {"temperature": 1.0, "top_p": 0.6},
    {"temperature": 1.0, "min_p": 0.2},
    {"temperature": 0.8, "top_k": 8, "top_p": 0.7, "min_p": 0.1},
    {"temperature": 2.0, "top_k": 1},
    {"temperature": 1.0, "top_p": 1e-6},
    {"temperature": 1.0, "typical_p": 0.3},
    {"temperature": 0.7, "typical_p": 0.9},
    {"temperature": 1.0, "typical_p": 1e-6},
    {"temperature": 1.0, "min_p": 1.0},
    {"temperature": 1.0, "xtc_threshold": 0.05},
    {"temperature": 1.3, "min_p": 0.02, "xtc_threshold": 0.1},
    {"temperature": 1.0, "xtc_threshold": 0.0},
    {"temperature": 0.9, "top_k": 30, "typical_p": 0.95, "top_p": 0.9, "min_p": 0.01, "xtc_threshold": 0.2},
    {"temperature": 1.0, "top_k": 700, "top_p": 0.99},
]


@pytest.mark.parametrize("vocabulary", [37, 300, 5000])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_draw_is_the_one_of_the_reference(library: Library, case: dict[str, float], vocabulary: int) -> None:
    options = case | ({"xtc_probability": 1.0} if "xtc_threshold" in case else {})
    for seed in range(4):
        logits = random_logits(seed, vocabulary)
        expected = twin(logits, case)
        sampler = sampler_of(vocabulary, **options, seed=seed)
        for number in range(40):
            assert draw(library, sampler, logits) == reference.draw(expected, reference.uniform(seed, number))


def test_samplers_act_in_the_order_asked_for(library: Library) -> None:
    case = {"temperature": 2.0, "top_k": 25, "typical_p": 0.8, "top_p": 0.8, "min_p": 0.1, "xtc_threshold": 0.15}
    logits, different = (np.random.default_rng(3).standard_normal(VOCABULARY) * 1.5).astype(np.float32), set()
    for order in itertools.islice(itertools.permutations(TWINS), 0, None, 7):
        expected = twin(logits, case, order)
        different.add(tuple(np.isfinite(expected)))
        sampler = sampler_of(VOCABULARY, **case, xtc_probability=1.0, seed=3, sampler_order=order)
        for number in range(25):
            assert draw(library, sampler, logits) == reference.draw(expected, reference.uniform(3, number)), order
    assert len(different) > 5, "the order makes no difference here"


def test_a_sampler_left_out_of_the_order_is_off(library: Library) -> None:
    logits = random_logits(1, VOCABULARY)
    found = sampler_of(VOCABULARY, temperature=1.5, top_k=1, top_p=0.9, seed=2, sampler_order=("top_p",))
    expected = sampler_of(VOCABULARY, temperature=1.0, top_p=0.9, seed=2)
    assert [draw(library, found, logits) for _ in range(30)] == [draw(library, expected, logits) for _ in range(30)]


def test_equal_logits_are_cut_in_the_order_of_their_tokens(library: Library) -> None:
    logits = np.zeros(600, np.float32)
    for options, count in ({"top_k": 5}, 5), ({"top_p": 0.01}, 6), ({"typical_p": 0.01}, 6):
        sampler = sampler_of(600, temperature=1.0, seed=1, **options)
        assert {draw(library, sampler, logits) for _ in range(80)} == set(range(count))
    sampler = sampler_of(4, temperature=1.0, xtc_probability=1.0, seed=1)
    assert {draw(library, sampler, np.zeros(4, np.float32)) for _ in range(40)} == {3}


@pytest.mark.parametrize("case", [CASES[1], CASES[6], CASES[10]], ids=str)
def test_draws_follow_the_distribution(library: Library, case: dict[str, float]) -> None:
    """Chi-squared over 4,000 draws, against its 99.9 % point by Wilson and Hilferty's approximation."""
    logits = random_logits(1, VOCABULARY)
    expected = reference.probabilities(twin(logits, case))
    sampler = sampler_of(VOCABULARY, **case, seed=7)
    draws = 4000
    counts = np.bincount([draw(library, sampler, logits) for _ in range(draws)], minlength=VOCABULARY)
    assert not counts[expected == 0].any(), "a token outside the kept ones was drawn"
    likely = expected * draws >= 5
    observed, wanted = counts[likely], expected[likely] * draws
    freedom = max(likely.sum() - 1, 1)
    limit = freedom * (1 - 2 / (9 * freedom) + 3.09 * np.sqrt(2 / (9 * freedom))) ** 3
    assert ((observed - wanted) ** 2 / wanted).sum() < limit


def test_xtc_excludes_as_often_as_asked_whatever_is_drawn(library: Library) -> None:
    """Two tokens at 0.7 and 0.3: where XTC acts, the second; where not, the draw decides."""
    logits = np.log(np.array([0.7, 0.3], np.float32))
    sampler = sampler_of(2, temperature=1.0, xtc_probability=0.4, seed=5)
    tokens = np.array([draw(library, sampler, logits) for _ in range(4000)])
    draws_second = np.array([reference.uniform(5, number) >= 0.7 for number in range(4000)])
    acted = tokens[~draws_second] == 1
    assert (tokens[draws_second] == 1).all()
    assert abs(acted.mean() - 0.4) < 4 * np.sqrt(0.24 / len(acted))


def test_a_seed_gives_the_same_draws_and_another_gives_others(library: Library) -> None:
    logits = random_logits(2, VOCABULARY)
    samplers = [sampler_of(VOCABULARY, temperature=1.0, seed=seed) for seed in (1, 1, 2)]
    first, again, other = ([draw(library, sampler, logits) for _ in range(20)] for sampler in samplers)
    assert first == again != other


def test_mirostat_is_the_references_and_leads_the_surprise_to_tau(library: Library) -> None:
    """On a Zipf distribution, whose own entropy is 7.4 bits."""
    logits = -np.log(np.arange(1, 2001, dtype=np.float64)).astype(np.float32)
    for tau in (2.0, 5.0):
        sampler = sampler_of(2000, temperature=1.0, mirostat=2, mirostat_tau=tau, mirostat_eta=0.1, seed=9)
        mu, surprises = 2 * tau, []
        for number in range(1500):
            kept = reference.mirostat(logits, mu)
            token = draw(library, sampler, logits)
            assert token == reference.draw(kept, reference.uniform(9, number))
            surprises.append(-np.log2(reference.probabilities(kept)[token]))
            mu -= 0.1 * (surprises[-1] - tau)
        assert abs(np.mean(surprises[300:]) - tau) < 0.1


def test_mirostat_takes_the_place_of_truncations_only(library: Library) -> None:
    logits = random_logits(3, VOCABULARY)
    found, plain = (
        sampler_of(VOCABULARY, [1, 2], temperature=1.4, mirostat=2, frequency_penalty=0.5, seed=4, **more)
        for more in ({"top_k": 1, "top_p": 0.1, "typical_p": 0.1, "min_p": 1.0, "xtc_probability": 1.0}, {})
    )
    assert [draw(library, found, logits) for _ in range(50)] == [draw(library, plain, logits) for _ in range(50)]


def available(isa: str) -> bool:
    try:
        target_for(isa)
    except jit.KernelError:
        return False
    return isa != host_target().isa


@pytest.mark.parametrize("isa", [isa for isa in ISAS if available(isa)])
def test_other_instruction_sets_choose_the_same_with_the_same_bits(
    library: Library, kernel_cache: Path, isa: str
) -> None:
    other, logits = jit.load(kernel_cache, isa=isa), random_logits(5, 5000)
    for options in (*CASES, {"temperature": 1.0, "mirostat": 2}):
        options = options | {"logprobs": 3, "frequency_penalty": 0.1, "dry_multiplier": 0.5, "seed": 1}
        samplers = [sampler_of(5000, **options) for _ in range(2)]
        for _ in range(10):
            mine, its = (draw(*on, logits) for on in zip((library, other), samplers, strict=True))
            assert (mine, samplers[0].logprobs(0)) == (its, samplers[1].logprobs(0))


def test_rows_are_shared_out_among_threads(library: Library) -> None:
    logits = np.stack([random_logits(seed, VOCABULARY) for seed in range(5)])
    samplers = [sampler_of(VOCABULARY) for _ in range(5)]
    addresses = [records(sampler)[0] for sampler in samplers]
    run_sample(library, [*addresses[:2], 0, *addresses[3:]], logits, threads=3)
    chosen = [samplers[row].chosen(0) for row in (0, 1, 3, 4)]
    assert chosen == logits[[0, 1, 3, 4]].argmax(-1).tolist()
