"""Random requests of every kind, what each gives alone, and readers that run many of them through one engine."""

import importlib.util
import random
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import edgellm
from edgellm import Model, SamplingParams
from edgellm.engine.constrain import Choice, Constraint, JsonSchema, Regex
from edgellm.engine.request import FinishReason, Piece
from edgellm.engine.stream import Stream

CONTEXT = 192  # tokens: 6 KV blocks
VOCABULARY = 271  # of the tiny model
SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["anna", "theo"]}, "age": {"type": "integer"}, "is": {"type": "boolean"}},
    "required": ["name", "age", "is"],
    "additionalProperties": False,
}
CONSTRAINTS: list[Constraint] = [
    Regex("[a-f]{2,9}"), Regex("(the |in |an ){1,6}on"), Choice(("yes", "no", "another one")), JsonSchema(SCHEMA),
]  # fmt: skip
HAS_CONSTRAINTS = importlib.util.find_spec("llguidance") is not None


@dataclass(frozen=True)
class Asked:
    """A request, and after how many pieces its reader goes away."""

    prompt: list[int]
    params: SamplingParams
    priority: int
    cancel_after: int | None


@dataclass(frozen=True)
class Given:
    """All that its reader saw of an answer."""

    pieces: list[Piece]
    text: str
    token_ids: list[int]
    finish_reason: FinishReason | None
    num_dropped: int


def random_requests(count: int, seed: int) -> list[Asked]:
    rng = random.Random(seed)
    bases = [[rng.randrange(3, VOCABULARY) for _ in range(CONTEXT)] for _ in range(6)]
    bases += [base[:5] * (CONTEXT // 5) for base in bases[:3]]  # in which drafts are found
    return [_random_request(rng, bases) for _ in range(count)]


def _random_request(rng: random.Random, bases: list[list[int]]) -> Asked:
    shared = rng.choice([0, rng.randrange(1, 40), rng.randrange(30, 150)])
    prompt = rng.choice(bases)[:shared] + [rng.randrange(3, VOCABULARY) for _ in range(rng.randrange(1, 8))]
    options: dict[str, object] = {"max_tokens": rng.randrange(1, 24)}
    if rng.random() < 0.6:
        options |= {"temperature": rng.choice([0.2, 0.7, 1.5]), "seed": rng.randrange(2**40)}
        options |= rng.choice(
            [{}, {"top_k": 20}, {"top_p": 0.8, "min_p": 0.02}, {"typical_p": 0.7}, {"mirostat": 2, "mirostat_tau": 3.0},
             {"xtc_probability": 0.5, "xtc_threshold": 0.05}],
        )  # fmt: skip
    options |= rng.choice(
        [{}, {}, {"repetition_penalty": 1.3, "penalty_last_n": 20}, {"presence_penalty": 0.5},
         {"frequency_penalty": 0.3}, {"dry_multiplier": 0.8, "dry_allowed_length": 1}],
    )  # fmt: skip
    if rng.random() < 0.3:
        options["logprobs"] = rng.randrange(4)
    if rng.random() < 0.3:
        options["stop"] = tuple(rng.sample(["e", "th", "x", "in", "\n", "ab", "é"], 2))
    if rng.random() < 0.15 and HAS_CONSTRAINTS:
        options["constraint"] = rng.choice(CONSTRAINTS)
    if rng.random() < 0.1:
        prompt = rng.choice(bases)[: CONTEXT - 10] + prompt[-8:]
        options |= {"context_policy": rng.choice(["shift", "stop"]), "context_keep": rng.choice([0, 4])}
    options["speculation"] = rng.choice(["off", "on", "on", "auto"])
    cancel_after = rng.randrange(6) if rng.random() < 0.1 else None
    return Asked(prompt, SamplingParams(**options), rng.choice([0, 0, 0, 1, -1]), cancel_after)  # type: ignore[arg-type]


def given(stream: Stream, pieces: list[Piece]) -> Given:
    return Given(pieces, stream.text, stream.token_ids, stream.finish_reason, stream.usage.num_dropped_tokens)


def answer(model: Model, asked: Asked) -> Given:
    """Read alone and to the end."""
    stream = model.generate(asked.prompt, asked.params)
    return given(stream, list(stream))


def answer_alone(path: Path, asked: Asked, **options: str) -> Given:
    """By an engine that never had another request, without drafts."""
    with edgellm.load(path, threads=1, context=CONTEXT, **options) as model:
        return answer(model, replace(asked, params=replace(asked.params, speculation="off")))


def answer_together(model: Model, requests: Sequence[Asked], *, readers: int = 3, streams: int = 8) -> list[Given]:
    """Read by several threads, each from several streams in random order."""
    results: list[Given | None] = [None] * len(requests)
    errors: list[BaseException] = []

    def read(first: int) -> None:
        rng, todo = random.Random(first), list(range(first, len(requests), readers))
        opened: dict[int, tuple[Stream, list[Piece]]] = {}
        try:
            while todo or opened:
                if todo and ((len(opened) < streams and rng.random() < 0.5) or not opened):
                    number = todo.pop(0)
                    asked = requests[number]
                    stream = model.generate(asked.prompt, asked.params, priority=asked.priority)
                    opened[number] = stream, []
                number = rng.choice(list(opened))
                stream, pieces = opened[number]
                if len(pieces) == requests[number].cancel_after:
                    stream.close()
                    piece = None
                else:
                    piece = next(stream, None)
                if piece is None:
                    results[number] = given(stream, pieces)
                    del opened[number]
                else:
                    pieces.append(piece)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=read, args=(first,), daemon=True) for first in range(readers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
        assert not thread.is_alive(), "the engine hangs"
    if errors:
        raise errors[0]
    return [result for result in results if result is not None]


def assert_equal(requests: Sequence[Asked], together: Sequence[Given], alone: Sequence[Given]) -> None:
    """Bit by bit, and for a reader that went away as far as it read."""
    assert len(together) == len(alone) == len(requests)
    for asked, mine, whole in zip(requests, together, alone, strict=True):
        if asked.cancel_after is None:
            assert mine == whole, asked
        else:
            assert mine.pieces == whole.pieces[: asked.cancel_after], asked
            assert mine.token_ids[: len(whole.token_ids)] == whole.token_ids[: len(mine.token_ids)], asked
