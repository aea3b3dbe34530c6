"""How a request's tokens are chosen, in plain NumPy: what kernels/ops.py says of SAMPLE."""

import secrets
from collections.abc import Sequence as Seq
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgellm.backends.sampling import acting_samplers, check_tokens
from edgellm.engine.logprobs import Logprobs, logprobs_of
from edgellm.engine.params import SamplingParams
from edgellm.kernels import reference
from edgellm.kernels.ops import XTC_STREAM

Logits = NDArray[np.float64]
LEAST_TEMPERATURE = 1e-30  # so that logits stay finite


class _Choice(NamedTuple):
    token: int
    mu: float  # Mirostat's, after the token
    logprobs: Logprobs | None


class NaiveSampler:
    """Parameters, text so far and number of draws of one request: SamplerSlot."""

    def __init__(
        self, params: SamplingParams, vocabulary: int, prompt: Seq[int], breakers: Seq[int] = ()
    ) -> None:  # fmt: skip
        """`breakers` are the tokens at which DRY's repetitions end.

        Errors: OptionError for a biased token or a breaker outside the vocabulary.
        """
        check_tokens("logit_bias", params.logit_bias, vocabulary)
        check_tokens("dry_sequence_breakers", breakers, vocabulary)
        self.seed = secrets.randbits(63) if params.seed is None else params.seed
        self._params = params
        self._samplers = acting_samplers(params)
        self._breakers = set(breakers)
        self._text = list(prompt)
        self._num_prompt_tokens = len(prompt)
        self._draw = 0
        self._mu = 2 * params.mirostat_tau
        self._drafted: list[int] = []
        self._masks: NDArray[np.int32] | None = None
        self._choices: list[_Choice] = []  # of the last step

    @property
    def num_rows(self) -> int:
        """Made ready by `prepare`."""
        return 1 + len(self._drafted)

    def prepare(self, drafted: Seq[int] = (), masks: NDArray[np.int32] | None = None) -> None:
        """Make rows ready for the next token and those after each drafted one: SamplerSlot.prepare."""
        self._drafted = list(drafted)
        self._masks = masks

    def choose(self, logits: NDArray[np.float32]) -> None:
        """A token for each row of logits [num_rows][V]."""
        self._choices = []
        for j, row in enumerate(logits):
            self._choices.append(self._choose(row, j, self._choices[-1].mu if j else self._mu))

    def chosen(self, j: int) -> int:
        """The token that the last step chose for row j."""
        return self._choices[j].token

    def logprobs(self, j: int) -> Logprobs | None:
        """Those of row j's token, where asked for."""
        return self._choices[j].logprobs

    def accept(self, count: int = 1) -> list[int]:
        """The tokens that the first `count` rows chose; they count from now on."""
        tokens = [choice.token for choice in self._choices[:count]]
        assert tokens[:-1] == self._drafted[: count - 1], (tokens, self._drafted)
        self._draw = self._draw + count
        self._mu = self._choices[count - 1].mu
        self._text += tokens
        return tokens

    def append(self, tokens: Seq[int]) -> None:
        """Tokens that were not chosen but given; they count as text of the answer, and take no draw."""
        self._text += tokens

    def _choose(self, raw: NDArray[np.float32], j: int, mu: float) -> _Choice:
        params = self._params
        draw = self._draw + j
        logits = self._allowed(raw, j)
        if np.isfinite(logits.max()):
            text = self._text + self._drafted[:j]
            for name in self._samplers:
                logits = self._sampled(name, logits, text, draw, mu)
        if params.temperature > 0 and np.isfinite(logits.max()):
            token = reference.draw(logits, reference.uniform(self.seed, draw))
            surprise = -float(np.log2(reference.probabilities(logits)[token]))
            mu -= params.mirostat_eta * (surprise - params.mirostat_tau)
        else:
            token = int(logits.argmax())
        top = None if params.logprobs is None else min(params.logprobs, len(raw))
        return _Choice(token, mu, None if top is None else logprobs_of(raw[None], [token], top)[0])

    def _allowed(self, raw: NDArray[np.float32], j: int) -> Logits:
        """Row j's logits after mask and biases; what is not a number is out of play."""
        logits = np.where(np.isnan(raw), -np.inf, raw.astype(np.float64))
        if self._masks is not None:
            bits = np.unpackbits(self._masks[j].view(np.uint8), bitorder="little")[: len(raw)]
            logits = np.where(bits, logits, -np.inf)
        for token, bias in self._params.logit_bias.items():
            logits[token] += bias
        return logits

    def _sampled(self, name: str, logits: Logits, text: list[int], draw: int, mu: float) -> Any:
        params = self._params
        match name:
            case "penalties":
                begin = _begin(text, params.penalty_last_n)
                prompt = self._num_prompt_tokens
                return reference.penalize(
                    logits, text[begin:prompt], text[max(begin, prompt) :], repetition=params.repetition_penalty,
                    presence=params.presence_penalty, frequency=params.frequency_penalty,
                )  # fmt: skip
            case "dry":
                return reference.dry(
                    logits, text[_begin(text, params.dry_penalty_last_n) :], multiplier=params.dry_multiplier,
                    base=params.dry_base, allowed_length=params.dry_allowed_length, breakers=self._breakers,
                )  # fmt: skip
            case "top_k":
                return reference.top_k(logits, params.top_k)
            case "typical_p":
                return reference.typical_p(logits, params.typical_p)
            case "top_p":
                return reference.top_p(logits, params.top_p)
            case "min_p":
                return reference.min_p(logits, params.min_p)
            case "xtc":
                acts = reference.uniform(self.seed ^ XTC_STREAM, draw) < params.xtc_probability
                return reference.xtc(logits, params.xtc_threshold) if acts else logits
            case "temperature":
                return reference.temperature(logits, max(params.temperature, LEAST_TEMPERATURE))
            case "mirostat":
                return reference.mirostat(logits, mu)
        raise AssertionError(name)


def _begin(text: list[int], last_n: int) -> int:
    """Of the last n tokens; of all, where n is negative."""
    return 0 if last_n < 0 else max(0, len(text) - last_n)
