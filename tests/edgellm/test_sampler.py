"""A request's sampler: drafted rows, log-probabilities, what is refused."""

import numpy as np
import pytest

from edgellm.backends.cpu.sampler import Sampler
from edgellm.engine.logprobs import Logprobs, logprobs_of
from edgellm.engine.params import SamplingParams
from edgellm.errors import OptionError
from edgellm.kernels.jit import Library
from tests.kernels.sampling import draw, random_logits, records, run_sample, sampler_of

VOCABULARY = 50
PROMPT = [1, 2, 3, 1, 2, 3, 1, 2]
LENGTH = 40  # tokens of an answer
STATES: list[dict[str, object]] = [
    {},
    {"repetition_penalty": 1.5, "frequency_penalty": 0.3, "penalty_last_n": 12},
    {"dry_multiplier": 2.0, "dry_allowed_length": 1},
    {"temperature": 1.0, "top_p": 0.9},
    {"temperature": 1.0, "xtc_probability": 0.5, "xtc_threshold": 0.05},
    {"temperature": 1.2, "mirostat": 2, "mirostat_tau": 3.0, "mirostat_eta": 0.4, "presence_penalty": 0.5},
]


@pytest.mark.parametrize("options", STATES, ids=str)
def test_drafted_rows_choose_what_one_row_after_the_other_would(library: Library, options: dict[str, object]) -> None:
    """And right drafts are accepted: logits depend on the place alone, so a draft is right when it is the answer."""
    logits = np.stack([random_logits(place, VOCABULARY) for place in range(LENGTH + 8)])
    plain = sampler_of(VOCABULARY, PROMPT, **options, seed=8, logprobs=2)
    answer, logprobs = [], []
    for place in range(len(logits)):
        answer.append(draw(library, plain, logits[place]))
        logprobs.append(plain.logprobs(0))
    sampler, rng = sampler_of(VOCABULARY, PROMPT, **options, seed=8, logprobs=2), np.random.default_rng(0)
    place, most = 0, 0
    while place < LENGTH:
        drafted = answer[place : place + rng.integers(0, 7)]
        if drafted and rng.random() < 0.5:
            drafted[rng.integers(len(drafted))] = int(rng.integers(VOCABULARY))
        run_sample(library, records(sampler, drafted), logits[place : place + 1 + len(drafted)], threads=2)
        count = 1
        while count <= len(drafted) and sampler.chosen(count - 1) == drafted[count - 1]:
            count += 1
        assert [sampler.logprobs(j) for j in range(count)] == logprobs[place : place + count]
        assert sampler.accept(count) == answer[place : place + count]
        place, most = place + count, max(most, count)
    assert most == 7, "no draft was accepted whole"


def test_tokens_that_were_given_count_as_text(library: Library) -> None:
    """As those of a constraint, which are not drawn: a penalty sees them, and they take no number of a draw."""
    logits = random_logits(0, VOCABULARY)
    best, second = np.argsort(-logits)[:2].tolist()
    sampler = sampler_of(VOCABULARY, PROMPT, frequency_penalty=100.0)
    sampler.append([best])
    assert draw(library, sampler, logits) == second
    plain, given = (sampler_of(VOCABULARY, temperature=1.0, seed=5) for _ in range(2))
    given.append([best])
    assert [draw(library, plain, logits) for _ in range(9)] == [draw(library, given, logits) for _ in range(9)]


def test_masks_are_for_one_row_each_and_for_one_step(library: Library) -> None:
    logits = np.stack([random_logits(place, VOCABULARY) for place in range(3)])
    sampler = sampler_of(VOCABULARY)
    masks = np.zeros((3, 2), np.int32)
    masks[0, 0], masks[1, 1], masks[2] = 1 << 4, 1 << 2, -1
    run_sample(library, records(sampler, [4, 34], masks), logits)
    assert sampler.accept(3) == [4, 34, int(logits[2].argmax())]
    run_sample(library, records(sampler, [int(logits[0].argmax())]), logits[:2])
    assert sampler.accept(2) == logits[:2].argmax(-1).tolist()


def log_softmax(logits: np.ndarray) -> np.ndarray:
    exact = logits.astype(np.float64)
    return exact - exact.max() - np.log(np.exp(exact - exact.max()).sum())


@pytest.mark.parametrize("vocabulary", [7, 5000])
@pytest.mark.parametrize("options", [{}, {"temperature": 3.0, "min_p": 0.01, "frequency_penalty": 1.0}], ids=str)
def test_logprobs_are_those_of_the_models_logits(library: Library, vocabulary: int, options: dict[str, object]) -> None:
    sampler = sampler_of(vocabulary, **options, logprobs=20, seed=1, logit_bias={3: -20.0})
    for seed in range(20):
        logits = random_logits(seed, vocabulary)
        exact = log_softmax(logits)
        token = draw(library, sampler, logits)
        found = sampler.logprobs(0)
        assert found is not None
        assert abs(found.logprob - exact[token]) < 1e-5
        best = np.argsort(-logits, kind="stable")[:20]
        assert [id_ for id_, _ in found.top] == best.tolist()
        assert np.abs([logprob for _, logprob in found.top] - exact[best]).max() < 1e-5
        (plain,) = logprobs_of(logits[None], [token], 20)
        assert [id_ for id_, _ in plain.top] == best.tolist()
        assert abs(plain.logprob - exact[token]) < 1e-9


def test_as_many_logprobs_as_were_asked_for(library: Library) -> None:
    logits = random_logits(0, VOCABULARY)
    for count in (None, 0, 1, 5):
        sampler = sampler_of(VOCABULARY, logprobs=count)
        draw(library, sampler, logits)
        found = sampler.logprobs(0)
        assert (None if found is None else len(found.top)) == count


def test_logprobs_of_given_tokens() -> None:
    logits = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]], np.float32))
    first, second = logprobs_of(logits, [1, 2], 2)
    assert np.isclose(first.logprob, np.log(0.25))
    assert [id_ for id_, _ in first.top] == [0, 1]
    assert [id_ for id_, _ in second.top] == [2, 1]
    assert second.top[0][1] == second.logprob
    assert logprobs_of(logits[:1], [2], 0) == [Logprobs(pytest.approx(np.log(0.25)))]


def test_tokens_outside_the_vocabulary_are_refused() -> None:
    with pytest.raises(OptionError, match=r"logit_bias.*50"):
        sampler_of(VOCABULARY, logit_bias={50: 1.0})
    with pytest.raises(OptionError, match=r"dry_sequence_breakers.*71"):
        Sampler(SamplingParams(dry_multiplier=1.0), VOCABULARY, [], breakers=[71])
