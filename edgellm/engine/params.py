"""How tokens are chosen and when a text ends."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from edgellm.errors import OptionError

MAX_INT = 2**31 - 1
# Ranges by name: lowest, highest, whether the lowest itself is allowed, what switches the option off
RANGES: dict[str, tuple[float, float, bool, str]] = {
    "max_tokens": (1, MAX_INT, True, "without it the answer goes on until the context is full"),
    "temperature": (0.0, 100.0, True, "0 always takes the most likely token"),
    "top_k": (0, MAX_INT, True, "0 keeps all tokens"),
    "top_p": (0.0, 1.0, False, "1 keeps all tokens"),
    "min_p": (0.0, 1.0, True, "0 keeps all tokens"),
    "repetition_penalty": (0.0, 100.0, False, "1 changes nothing"),
    "presence_penalty": (-100.0, 100.0, True, "0 changes nothing"),
    "frequency_penalty": (-100.0, 100.0, True, "0 changes nothing"),
    "seed": (0, 2**63 - 1, True, "without it a seed is drawn"),
}


@dataclass(frozen=True)
class SamplingParams:
    """How to generate; the defaults are greedy. Applied in this order: penalties and biases, temperature, top-k, top-p,
    min-p, then a draw. Errors: OptionError for a value outside its range.
    """

    max_tokens: int | None = None
    temperature: float = 0.0
    top_k: int = 0  # keep the k most likely tokens
    top_p: float = 1.0  # keep the most likely tokens that together reach this probability
    min_p: float = 0.0  # keep tokens at least this fraction as likely as the likeliest
    repetition_penalty: float = 1.0  # divides positive logits of tokens in prompt or answer, multiplies negative ones
    presence_penalty: float = 0.0  # off the logit of a token in the answer
    frequency_penalty: float = 0.0  # off the logit of a token, for every time it is in the answer
    seed: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)  # token id -> added to its logit
    stop: tuple[str, ...] = ()  # texts before which the answer ends

    def __post_init__(self) -> None:
        for option in fields(self):
            if option.name in RANGES:
                _check_number(option.name, getattr(self, option.name), whole="int" in str(option.type))
        for token, bias in self.logit_bias.items():
            if type(token) is not int or token < 0 or type(bias) not in (int, float) or not math.isfinite(bias):
                raise OptionError(f"logit_bias {token!r}: {bias!r} is not a token id with a finite number")
        if isinstance(self.stop, str) or not all(isinstance(text, str) and text for text in self.stop):
            raise OptionError(f"stop {self.stop!r} is not a tuple of texts that are not empty; one is written (text,)")


def _check_number(name: str, value: object, whole: bool) -> None:
    lowest, highest, inclusive, remedy = RANGES[name]
    if value is None and name in ("max_tokens", "seed"):
        return
    kinds = (int,) if whole else (int, float)
    if type(value) not in kinds:
        raise OptionError(f"{name} {value!r} is not {'a whole' if whole else 'a'} number; {remedy}")
    assert isinstance(value, int | float)
    if not (lowest <= value <= highest) or (value == lowest and not inclusive):
        bracket = "[" if inclusive else "("
        raise OptionError(f"{name} {value!r} is outside {bracket}{lowest:.12g}, {highest:.12g}]; {remedy}")
