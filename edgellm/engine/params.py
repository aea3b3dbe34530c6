"""How tokens are chosen and when a text ends."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Literal

from edgellm.engine.constrain import Constraint
from edgellm.errors import OptionError
from edgellm.kernels.ops import DRY_LONGEST, SAMPLERS

MAX_INT = 2**31 - 1
MAX_LOGPROBS = 20
SPECULATION = ("auto", "on", "off")
CONTEXT_POLICIES = ("error", "stop", "shift")
SAMPLER_ORDER = SAMPLERS[:-1]  # llama.cpp's; mirostat is no part of an order
# Ranges by name: lowest, highest, whether the lowest itself is allowed, what switches the option off
RANGES: dict[str, tuple[float, float, bool, str]] = {
    "max_tokens": (1, MAX_INT, True, "without it the answer goes on until the context is full"),
    "temperature": (0.0, 100.0, True, "0 always takes the most likely token"),
    "top_k": (0, MAX_INT, True, "0 keeps all tokens"),
    "typical_p": (0.0, 1.0, False, "1 keeps all tokens"),
    "top_p": (0.0, 1.0, False, "1 keeps all tokens"),
    "min_p": (0.0, 1.0, True, "0 keeps all tokens"),
    "xtc_threshold": (0.0, 1.0, True, "above 0.5 nothing is excluded"),
    "xtc_probability": (0.0, 1.0, True, "0 never excludes a token"),
    "repetition_penalty": (0.0, 100.0, False, "1 changes nothing"),
    "presence_penalty": (-100.0, 100.0, True, "0 changes nothing"),
    "frequency_penalty": (-100.0, 100.0, True, "0 changes nothing"),
    "penalty_last_n": (-1, MAX_INT, True, "-1 looks at the whole text"),
    "dry_multiplier": (0.0, 100.0, True, "0 penalizes no repetition"),
    "dry_base": (1.0, 100.0, True, "1 penalizes long repetitions like short ones"),
    "dry_allowed_length": (1, DRY_LONGEST, True, "a repetition is penalized from this length on"),
    "dry_penalty_last_n": (-1, MAX_INT, True, "-1 looks at the whole text"),
    "mirostat": (0, 2, True, "0 is off, 2 is Mirostat 2.0"),
    "mirostat_tau": (0.0, 100.0, False, "5 is usual"),
    "mirostat_eta": (0.0, 100.0, False, "0.1 is usual"),
    "logprobs": (0, MAX_LOGPROBS, True, "without it there are none"),
    "prompt_logprobs": (0, MAX_LOGPROBS, True, "without it there are none"),
    "context_keep": (0, MAX_INT, True, "0 keeps the newest tokens only"),
    "seed": (0, 2**63 - 1, True, "without it a seed is drawn"),
}


@dataclass(frozen=True)
class SamplingParams:
    """How to generate; the defaults are greedy.

    Biases come first, then the samplers of `sampler_order`, each on what those before it left; the default order is
    llama.cpp's. One left out of the order is off. Mirostat takes the place of top-k, typical-p, top-p, min-p and XTC.
    At temperature 0 only biases, penalties and DRY count: the likeliest token is taken.

    Errors: OptionError for a value outside its range.
    """

    max_tokens: int | None = None
    temperature: float = 0.0
    top_k: int = 0  # keep the k most likely tokens
    typical_p: float = 1.0  # keep tokens as surprising as is to be expected, that together reach this probability
    top_p: float = 1.0  # keep the most likely tokens that together reach this probability
    min_p: float = 0.0  # keep tokens at least this fraction as likely as the likeliest
    xtc_threshold: float = 0.1  # XTC excludes tokens this likely, but for the least likely of them
    xtc_probability: float = 0.0  # how often it does
    repetition_penalty: float = 1.0  # divides positive logits of tokens in prompt or answer, multiplies negative ones
    presence_penalty: float = 0.0  # off the logit of a token in the answer
    frequency_penalty: float = 0.0  # off the logit of a token, for every time it is in the answer
    penalty_last_n: int = -1  # tokens of prompt and answer that these three look at
    dry_multiplier: float = 0.0  # off the logit of a token that continues a repetition,
    dry_allowed_length: int = 2  # where so many tokens are repeated,
    dry_base: float = 1.75  # times this for every token more
    dry_penalty_last_n: int = -1  # tokens of prompt and answer in which repetitions are looked for
    # No repetition goes across these: token ids, and texts, which stand for every token that has them inside
    dry_sequence_breakers: tuple[str | int, ...] = ("\n", ":", '"', "*")
    mirostat: int = 0  # 2: keep the surprise of drawn tokens, in bits,
    mirostat_tau: float = 5.0  # near this
    mirostat_eta: float = 0.1  # by correcting this part of its error at every token
    sampler_order: tuple[str, ...] = SAMPLER_ORDER
    seed: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)  # token id -> added to its logit
    logprobs: int | None = None  # log-probability of each token, and of so many of the likeliest at its place
    prompt_logprobs: int | None = None  # the same for the prompt's tokens but the first; such a prompt reads no cache
    stop: tuple[str, ...] = ()  # texts before which the answer ends
    constraint: Constraint | None = None  # a form that the answer must have: JsonSchema, Regex, Choice, ...
    speculation: Literal["auto", "on", "off"] = "auto"  # drafts of tokens to come; they never change the text
    # What happens where prompt and max_tokens exceed the context. error: they are refused; stop: the answer ends there;
    # shift: all but the first context_keep and the newest tokens are dropped, and counted in `usage`;
    # not for models with recurrent states
    context_policy: Literal["error", "stop", "shift"] = "error"
    context_keep: int = 0

    def __post_init__(self) -> None:
        for option in fields(self):
            if option.name in RANGES:
                _check_number(option.name, getattr(self, option.name), whole="int" in str(option.type))
        for token, bias in self.logit_bias.items():
            if type(token) is not int or token < 0 or type(bias) not in (int, float) or not math.isfinite(bias):
                raise OptionError(f"logit_bias {token!r}: {bias!r} is not a token id with a finite number")
        if self.mirostat == 1:
            raise OptionError("mirostat 1 is not supported: 0 is off, 2 is Mirostat 2.0")
        unknown = [name for name in self.sampler_order if name not in SAMPLER_ORDER]
        if isinstance(self.sampler_order, str) or unknown:
            raise OptionError(f"sampler_order {self.sampler_order!r} is not a tuple of names of {SAMPLER_ORDER}")
        if len(set(self.sampler_order)) < len(self.sampler_order):
            raise OptionError(f"sampler_order {self.sampler_order!r} names a sampler twice")
        for part in self.dry_sequence_breakers:
            if not (type(part) is int and part >= 0) and not (isinstance(part, str) and part):
                raise OptionError(f"dry_sequence_breakers {part!r} is neither a token id nor a text that is not empty")
        if isinstance(self.dry_sequence_breakers, str):
            raise OptionError(f"dry_sequence_breakers {self.dry_sequence_breakers!r} is not a tuple; write (text,)")
        for name, known in (("speculation", SPECULATION), ("context_policy", CONTEXT_POLICIES)):
            if getattr(self, name) not in known:
                raise OptionError(f"{name} {getattr(self, name)!r} is none of {', '.join(known)}")
        if self.prompt_logprobs is not None and self.context_policy == "shift":
            raise OptionError(
                f"prompt_logprobs {self.prompt_logprobs} wants all of the prompt, of which context_policy 'shift' "
                "may drop some; choose another"
            )
        if self.constraint is not None and not isinstance(self.constraint, Constraint):
            raise OptionError(f"constraint {self.constraint!r} is no JsonSchema, JsonObject, Regex, Choice or Grammar")
        if isinstance(self.stop, str) or not all(isinstance(text, str) and text for text in self.stop):
            raise OptionError(f"stop {self.stop!r} is not a tuple of texts that are not empty; one is written (text,)")


def _check_number(name: str, value: object, whole: bool) -> None:
    lowest, highest, inclusive, remedy = RANGES[name]
    if value is None and name in ("max_tokens", "seed", "logprobs", "prompt_logprobs"):
        return
    kinds = (int,) if whole else (int, float)
    if type(value) not in kinds:
        raise OptionError(f"{name} {value!r} is not {'a whole' if whole else 'a'} number; {remedy}")
    assert isinstance(value, int | float)
    if not (lowest <= value <= highest) or (value == lowest and not inclusive):
        bracket = "[" if inclusive else "("
        raise OptionError(f"{name} {value!r} is outside {bracket}{lowest:.12g}, {highest:.12g}]; {remedy}")
