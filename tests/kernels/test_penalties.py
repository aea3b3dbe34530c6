"""What changes single logits before a token is chosen: biases, masks, penalties, DRY."""

import numpy as np
import pytest

from edgellm.backends.cpu.sampler import Sampler
from edgellm.engine.params import SamplingParams
from edgellm.kernels import reference
from edgellm.kernels.jit import Library
from tests.kernels.sampling import draw, random_logits, records, run_sample, sampler_of

VOCABULARY = 37


@pytest.mark.parametrize("last_n", [-1, 0, 1, 5, 20])
def test_penalties_change_logits_as_the_reference_does(library: Library, last_n: int) -> None:
    """Greedy on logits so that the winner changes with every penalty; the answer so far is what was drawn."""
    logits = random_logits(3, VOCABULARY) / 4
    prompt = [int(np.argmax(logits)), 5, 5]
    options = {"repetition_penalty": 1.3, "presence_penalty": 0.4, "frequency_penalty": 0.3}
    sampler, answer = sampler_of(VOCABULARY, prompt, **options, penalty_last_n=last_n), list[int]()
    for _ in range(30):
        first = max(0, len(prompt) + len(answer) - last_n) if last_n >= 0 else 0
        expected = reference.penalize(
            logits, prompt[first:], answer[max(0, first - len(prompt)) :], repetition=1.3, presence=0.4, frequency=0.3
        )
        answer.append(draw(library, sampler, logits))
        assert answer[-1] == np.argmax(expected)
    assert len(set(answer)) > 5 or last_n in (0, 1)


def test_a_bias_bans_and_forces(library: Library) -> None:
    logits = random_logits(4, VOCABULARY)
    best = int(np.argmax(logits))
    assert draw(library, sampler_of(VOCABULARY, logit_bias={best: -100}), logits) != best
    assert draw(library, sampler_of(VOCABULARY, logit_bias={36: 100}), logits) == 36


def bit_mask(allowed: list[int], vocabulary: int) -> np.ndarray:
    mask = np.zeros(-(-vocabulary // 32), np.uint32)
    for token in allowed:
        mask[token // 32] |= np.uint32(1 << token % 32)
    return mask.view(np.int32)[None]


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 1.0}, {"temperature": 2.0, "top_k": 40, "top_p": 0.99}], ids=str
)
def test_only_tokens_that_the_mask_allows_are_chosen(library: Library, options: dict[str, float]) -> None:
    for vocabulary, allowed in (37, [3, 31, 32, 36]), (5000, [77]), (5000, [*range(64, 128), 4999]):
        logits = random_logits(1, vocabulary)
        sampler = sampler_of(vocabulary, **options, seed=1, logit_bias={5: 100.0})
        for _ in range(30):
            run_sample(library, records(sampler, masks=bit_mask(allowed, vocabulary)), logits[None])
            assert sampler.accept()[0] in allowed
        expected = sampler_of(vocabulary, logit_bias={5: 100.0})
        run_sample(library, records(sampler), logits[None])
        assert draw(library, expected, logits) == 5, "without a mask all are allowed again"


def test_a_mask_of_all_tokens_changes_nothing(library: Library) -> None:
    logits = random_logits(2, VOCABULARY)
    masked, plain = (sampler_of(VOCABULARY, temperature=1.5, seed=6) for _ in range(2))
    for _ in range(20):
        run_sample(library, records(masked, masks=bit_mask(list(range(VOCABULARY)), VOCABULARY)), logits[None])
        assert masked.accept() == [draw(library, plain, logits)]


@pytest.mark.parametrize("allowed_length", [1, 2, 4])
@pytest.mark.parametrize("last_n", [-1, 0, 2, 30])
def test_dry_penalizes_what_would_repeat(library: Library, allowed_length: int, last_n: int) -> None:
    """Texts that repeat a few tokens over and over, with mistakes; token 4 breaks repetitions."""
    changed = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        pattern = rng.integers(0, rng.integers(2, 6), rng.integers(2, 12))
        repeated = np.resize(pattern, rng.integers(0, 90))
        text = np.where(rng.random(len(repeated)) < 0.1, rng.integers(0, 5), repeated).tolist()
        logits = (rng.standard_normal(VOCABULARY) / 4 + 4 * (np.arange(VOCABULARY) < 5)).astype(np.float32)
        options = {"dry_multiplier": 1.0, "dry_base": 1.3, "dry_allowed_length": allowed_length}
        sampler = Sampler(SamplingParams(**options, dry_penalty_last_n=last_n), VOCABULARY, text, breakers=[4])
        seen = text[max(0, len(text) - last_n) :] if last_n >= 0 else text
        expected = reference.dry(logits, seen, multiplier=1.0, base=1.3, allowed_length=allowed_length, breakers={4})
        changed += np.argmax(expected) != np.argmax(logits)
        for _ in range(2):  # the kernel forgets what it counted
            run_sample(library, records(sampler), logits[None])
            assert sampler.chosen(0) == np.argmax(expected), (text, logits)
    assert changed > 3 or last_n in (0, 2)


def test_a_long_repetition_is_broken(library: Library) -> None:
    """However much the model wants it; the penalty stays finite."""
    logits = np.zeros(VOCABULARY, np.float32)
    logits[3] = 1e9
    sampler = sampler_of(VOCABULARY, [3] * 200, dry_multiplier=1.0, dry_base=4.0)
    assert draw(library, sampler, logits) != 3
    logits[:] = -np.inf
    logits[3] = 0.0
    assert draw(library, sampler_of(VOCABULARY, [3] * 200, dry_multiplier=1.0, dry_base=100.0), logits) == 3
