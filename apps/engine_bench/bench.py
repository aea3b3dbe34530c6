"""What all measurements of the engine share: a model, prompts that nobody saw before, and the clock of a reader."""

import random
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from edgellm import Model, SamplingParams, Usage
from edgellm.apps.speed import NEVER

T = TypeVar("T")


@dataclass(frozen=True)
class Figure:
    """A median, what it is the median of, and what else is worth keeping in the JSON."""

    value: float
    values: list[float]
    details: dict[str, Any]


@dataclass(frozen=True)
class Answer:
    ids: list[int]
    first_seconds: float  # from asking to the first token, on the reader's clock
    further_seconds: float  # from there to the end
    usage: Usage

    @property
    def seconds(self) -> float:
        return self.first_seconds + self.further_seconds

    @property
    def decode_tokens_per_second(self) -> float:
        return (len(self.ids) - 1) / self.further_seconds


class Bench:
    """A model that stays loaded, and how often to measure."""

    def __init__(self, load: Callable[..., Model], repeat: int) -> None:
        """`load` opens the model with options of edgellm.load."""
        self.load = load
        self.repeat = repeat
        self.model = load()
        self.draw = random.Random(0)
        answer(self.model, self.prompt(20), params(self.model, 4))

    def prompt(self, num_tokens: int) -> list[int]:
        """Random tokens."""
        return [self.draw.randrange(self.model.network.vocabulary) for _ in range(num_tokens)]

    def first_token_seconds(self, prompt: Sequence[int], model: Model | None = None) -> float:
        model = model or self.model
        return answer(model, prompt, params(model, 1)).first_seconds


def params(model: Model, max_tokens: int, *, speculation: str = "off", **options: float) -> SamplingParams:
    """Of answers that all have the length asked for."""
    bias = dict.fromkeys(model.tokenizer.stop_ids, NEVER)
    return SamplingParams(max_tokens=max_tokens, speculation=speculation, logit_bias=bias, **options)  # type: ignore[arg-type]


def answer(model: Model, prompt: Sequence[int], params: SamplingParams) -> Answer:
    begin = time.perf_counter()
    with model.generate(prompt, params) as stream:
        next(stream)
        first = time.perf_counter()
        for _ in stream:
            pass
    return Answer(stream.token_ids, first - begin, time.perf_counter() - first, stream.usage)


def chat_prompt(model: Model, text: str) -> list[int]:
    """A question as the model's chat template puts it; the text alone where there is none."""
    if model.packed.chat_template is None:
        return model.tokenize(text)
    with model.chat([{"role": "user", "content": text}]) as stream:
        return stream.prompt_token_ids


def in_turn(repeat: int, one: Callable[[], T], other: Callable[[], T]) -> tuple[list[T], list[T]]:
    """Both measured as often, one after the other, and every second time in the other order, so that drift cancels."""
    ones: list[T] = []
    others: list[T] = []
    for count in range(repeat):
        if count % 2 == 0:
            ones.append(one())
        others.append(other())
        if count % 2 == 1:
            ones.append(one())
    return ones, others


def ratio(above: Sequence[float], below: Sequence[float], **details: object) -> Figure:
    """The median of the ratios of neighbours."""
    ratios = [one / other for one, other in zip(above, below, strict=True)]
    return median(ratios, above=list(above), below=list(below), **details)


def median(values: Iterable[float], **details: object) -> Figure:
    values = list(values)
    return Figure(statistics.median(values), values, details)
