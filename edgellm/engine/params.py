"""How tokens are chosen and when a text ends."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgellm.engine.constrain import Constraint
from edgellm.errors import OptionError
from edgellm.kernels.ops import DRY_LONGEST, SAMPLERS

MAX_INT = 2**31 - 1
SEQUENCES = ("dry_sequence_breakers", "sampler_order", "stop", "stop_token_ids", "logits_processors")
MAX_LOGPROBS = 20
LogitsProcessor = Callable[[list[int], NDArray[np.float32]], None]
SPECULATION = ("auto", "on", "off")
CONTEXT_POLICIES = ("error", "stop", "shift")
SAMPLER_ORDER = SAMPLERS[:-1]  # llama.cpp's; mirostat is no part of an order


def option(
    default: Any, meaning: str, *, low: float | None = None, high: float = MAX_INT, above: bool = False, off: str = ""
) -> Any:
    """A field of SamplingParams: the one place that says what it means, also on the command line.

    Numbers are `low` to `high`; `above`: low itself is out. `off` is what switches the option off, for errors.
    """
    return field(default=default, metadata={"meaning": meaning, "low": low, "high": high, "above": above, "off": off})


@dataclass(frozen=True)
class SamplingParams:
    """How to generate; the defaults are greedy.

    Biases come first, then the samplers of `sampler_order`, each on what those before it left; the default order is
    llama.cpp's. One left out of the order is off. Mirostat takes the place of top-k, typical-p, top-p, min-p and XTC.
    At temperature 0 only biases, penalties and DRY count: the likeliest token is taken.

    Errors: OptionError for a value outside its range.
    """

    max_tokens: int | None = option(
        None, "most tokens of an answer", low=1, off="without it the answer goes on until the context is full"
    )
    min_tokens: int = option(
        0, "tokens before which no end token is chosen", low=0, off="0 lets the answer end at once"
    )
    ignore_eos: bool = False  # go on after the model's own end tokens
    temperature: float = option(
        0.0, "how much chance there is; 0 always takes the most likely token", low=0.0, high=100.0,
        off="0 always takes the most likely token",
    )  # fmt: skip
    top_k: int = option(0, "keep the K most likely tokens; 0 keeps all", low=0, off="0 keeps all tokens")
    typical_p: float = option(
        1.0, "locally typical sampling: keep the tokens closest to the expected surprise until they reach this "
        "probability together", low=0.0, high=1.0, above=True, off="1 keeps all tokens",
    )  # fmt: skip
    top_p: float = option(
        1.0, "keep the most likely tokens that reach this probability together", low=0.0, high=1.0, above=True,
        off="1 keeps all tokens",
    )  # fmt: skip
    min_p: float = option(
        0.0, "keep tokens at least this fraction as likely as the top token", low=0.0, high=1.0,
        off="0 keeps all tokens",
    )  # fmt: skip
    xtc_threshold: float = option(
        0.1, "XTC: exclude tokens at least this likely, but for the least likely of them", low=0.0, high=1.0,
        off="above 0.5 nothing is excluded",
    )  # fmt: skip
    xtc_probability: float = option(
        0.0, "XTC: how often it excludes", low=0.0, high=1.0, off="0 never excludes a token"
    )
    repetition_penalty: float = option(
        1.0, "divides positive logits of tokens in the prompt or the answer, and multiplies negative ones", low=0.0,
        high=100.0, above=True, off="1 changes nothing",
    )  # fmt: skip
    presence_penalty: float = option(
        0.0, "off the logit of a token that is in the answer", low=-100.0, high=100.0, off="0 changes nothing"
    )
    frequency_penalty: float = option(
        0.0, "off the logit of a token, for every time that it is in the answer", low=-100.0, high=100.0,
        off="0 changes nothing",
    )  # fmt: skip
    penalty_last_n: int = option(
        -1, "tokens of prompt and answer that the penalties look at; -1: all", low=-1, off="-1 looks at the whole text"
    )
    dry_multiplier: float = option(
        0.0, "DRY: off the logit of a token that continues a repetition", low=0.0, high=100.0,
        off="0 penalizes no repetition",
    )  # fmt: skip
    dry_allowed_length: int = option(
        2, "DRY: tokens from which on a repetition is penalized", low=1, high=DRY_LONGEST,
        off="a repetition is penalized from this length on",
    )  # fmt: skip
    dry_base: float = option(
        1.75, "DRY: base of the penalty, multiplier * base^(length - allowed length)", low=1.0, high=100.0,
        off="1 penalizes long repetitions like short ones",
    )  # fmt: skip
    dry_penalty_last_n: int = option(
        -1, "DRY: tokens in which repetitions are looked for; -1: all", low=-1, off="-1 looks at the whole text"
    )
    # No repetition goes across these: token ids, and texts, which stand for every token that has them inside
    dry_sequence_breakers: Sequence[str | int] = ("\n", ":", '"', "*")
    mirostat: int = option(0, "2: Mirostat 2.0 instead of the samplers that truncate", low=0, high=2, off="0 is off")
    mirostat_tau: float = option(
        5.0, "Mirostat: the surprise of drawn tokens, in bits, that it aims at", low=0.0, high=100.0, above=True,
        off="5 is usual",
    )  # fmt: skip
    mirostat_eta: float = option(
        0.1, "Mirostat: the part of its error that it corrects at every token", low=0.0, high=100.0, above=True,
        off="0.1 is usual",
    )  # fmt: skip
    sampler_order: Sequence[str] = SAMPLER_ORDER
    seed: int | None = option(None, "makes chance repeatable", low=0, high=2**63 - 1, off="without it a seed is drawn")
    logit_bias: Mapping[int, float] = field(default_factory=dict)  # token id -> added to its logit
    logprobs: int | None = option(
        None, "log-probability of each token, and of so many of the likeliest at its place", low=0, high=MAX_LOGPROBS,
        off="without it there are none",
    )  # fmt: skip
    # Such a prompt reads no cache
    prompt_logprobs: int | None = option(
        None,
        "the same for the prompt's tokens but the first",
        low=0,
        high=MAX_LOGPROBS,
        off="without it there are none",
    )
    stop: Sequence[str] = ()  # texts before which the answer ends
    stop_token_ids: Sequence[int] = ()  # tokens with which it ends, besides the model's own
    # Each is called with the answer's token ids so far and the logits of the next token, float32 [V], which it may
    # change in place, before anything else. Python for every token: a slow way for what no other option says
    logits_processors: Sequence[LogitsProcessor] = ()
    constraint: Constraint | None = None  # a form that the answer must have: JsonSchema, Regex, Choice, ...
    speculation: Literal["auto", "on", "off"] = "auto"  # drafts of tokens to come; they never change the text
    # What happens where prompt and max_tokens exceed the context: context.py
    context_policy: Literal["error", "stop", "shift"] = "error"
    context_keep: int = option(
        0, "with context_policy shift: the first N tokens stay", low=0, off="0 keeps the newest tokens only"
    )

    def __post_init__(self) -> None:
        for name in SEQUENCES:
            self._keep_as_tuple(name)
        for number in NUMBERS:
            _check_number(number, getattr(self, number.name))
        for token, bias in self.logit_bias.items():
            if type(token) is not int or token < 0 or type(bias) not in (int, float) or not math.isfinite(bias):
                raise OptionError(f"logit_bias {token!r}: {bias!r} is not a token id with a finite number")
        if self.mirostat == 1:
            raise OptionError("mirostat 1 is not supported: 0 is off, 2 is Mirostat 2.0")
        unknown = [name for name in self.sampler_order if name not in SAMPLER_ORDER]
        if isinstance(self.sampler_order, str) or unknown:
            raise OptionError(f"sampler_order {self.sampler_order!r} must be a list of names of {SAMPLER_ORDER}")
        if len(set(self.sampler_order)) < len(self.sampler_order):
            raise OptionError(f"sampler_order {self.sampler_order!r} names a sampler twice")
        for name in ("dry_sequence_breakers", "stop_token_ids", "logits_processors"):
            if isinstance(getattr(self, name), str):
                raise OptionError(f"{name} {getattr(self, name)!r} must be a list; one entry is written [entry]")
        for part in self.dry_sequence_breakers:
            if not (type(part) is int and part >= 0) and not (isinstance(part, str) and part):
                raise OptionError(f"dry_sequence_breakers {part!r} is neither a token id nor a text that is not empty")
        for name, known in (("speculation", SPECULATION), ("context_policy", CONTEXT_POLICIES)):
            if getattr(self, name) not in known:
                raise OptionError(f"{name} {getattr(self, name)!r} must be one of: {', '.join(known)}")
        if self.prompt_logprobs is not None and self.context_policy == "shift":
            raise OptionError(
                f"prompt_logprobs {self.prompt_logprobs} wants all of the prompt, of which context_policy 'shift' "
                "may drop some; choose another"
            )
        if self.constraint is not None and not isinstance(self.constraint, Constraint):
            raise OptionError(
                f"constraint {self.constraint!r} must be a JsonSchema, JsonObject, Regex, Choice or Grammar"
            )
        if isinstance(self.stop, str) or not all(isinstance(text, str) and text for text in self.stop):
            raise OptionError(f"stop {self.stop!r} must be a list of texts that are not empty; one is written [text]")
        for token in self.stop_token_ids:
            if type(token) is not int or token < 0:
                raise OptionError(f"stop_token_ids {token!r} is not a token id")
        if type(self.ignore_eos) is not bool:
            raise OptionError(f"ignore_eos {self.ignore_eos!r} must be True or False")
        if self.ignore_eos and self.constraint is not None:
            raise OptionError(
                "ignore_eos goes on after the end, where a constraint allows nothing; leave one of them out"
            )
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise OptionError(f"min_tokens {self.min_tokens} is more than max_tokens {self.max_tokens}")
        for processor in self.logits_processors:
            if not callable(processor):
                raise OptionError(f"logits_processors {processor!r} must be functions of (token_ids, logits)")

    def _keep_as_tuple(self, name: str) -> None:
        """Lists are taken where tuples are kept; what is neither is refused below or here."""
        value = getattr(self, name)
        if isinstance(value, list):
            object.__setattr__(self, name, tuple(value))
        elif not isinstance(value, tuple | str):
            raise OptionError(f"{name} {value!r} must be a list or a tuple")


def with_options(params: SamplingParams | None, options: Mapping[str, Any]) -> SamplingParams:
    """`params`, or the defaults, with other values of some fields. Errors: OptionError for a name that is no field."""
    names = [known.name for known in fields(SamplingParams)]
    unknown = [name for name in options if name not in names]
    if unknown:
        from difflib import get_close_matches  # for errors only

        near = get_close_matches(unknown[0], names, 1)
        hint = f"did you mean {near[0]}?" if near else f"must be one of: {', '.join(names)}"
        raise OptionError(f"there is no sampling option {unknown[0]!r}; {hint}")
    if params is not None and not isinstance(params, SamplingParams):
        raise OptionError(f"params {params!r} must be SamplingParams; options may also be named: max_tokens=20")
    return replace(params or SamplingParams(), **options)


def _check_number(number: "Field[Any]", value: object) -> None:
    name = number.name
    limits = number.metadata
    if value is None and number.default is None:
        return
    kinds = (int,) if is_whole(number) else (int, float)
    if type(value) not in kinds:
        raise OptionError(f"{name} {value!r} is not {'a whole' if len(kinds) == 1 else 'a'} number; {limits['off']}")
    assert isinstance(value, int | float)
    low = limits["low"]
    high = limits["high"]
    if not (low <= value <= high) or (value == low and limits["above"]):
        bracket = "(" if limits["above"] else "["
        raise OptionError(f"{name} {value!r} is outside {bracket}{low:.12g}, {high:.12g}]; {limits['off']}")


def is_whole(number: "Field[Any]") -> bool:
    """Whether an option takes whole numbers only."""
    return "int" in str(number.type)


NUMBERS = [number for number in fields(SamplingParams) if number.metadata]  # the options that are numbers
