"""What a form, INT8 keys and values, and Python cost or save in decoding."""

import time
from importlib.util import find_spec

from edgellm import Stream
from edgellm.apps.engine_bench.bench import Bench, Figure, answer, chat_prompt, in_turn, median, params, ratio
from edgellm.engine.constrain import JsonSchema
from edgellm.engine.params import SamplingParams

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 24},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "job": {"enum": ["baker", "pilot", "teacher", "nurse"]},
        "likes": {"type": "array", "items": {"type": "string", "maxLength": 16}, "minItems": 2, "maxItems": 2},
    },
    "required": ["name", "age", "job", "likes"],
    "additionalProperties": False,
}
PEOPLE = {"type": "array", "items": PERSON, "minItems": 4, "maxItems": 4}
QUESTION = "Invent four people who live in a small town by the sea. Answer in JSON."

DEPTH, KV_TOKENS = 4096, 24  # tokens of the prompt, and decoded at a time
OVERHEAD_PROMPT, OVERHEAD_TOKENS = 64, 200


def can_constrain() -> bool:
    return find_spec("llguidance") is not None


def json_ratio(bench: Bench) -> Figure:
    """Tokens a second from asking to the end, with a schema against without, for answers of the same length."""
    model = bench.model
    prompt = chat_prompt(model, QUESTION)
    held = SamplingParams(constraint=JsonSchema(PEOPLE), speculation="off", context_policy="stop")
    count = len(answer(model, prompt, held).ids)  # warms up: the first schema reads the vocabulary
    free = params(model, count)
    answer(model, prompt, free)

    def speed(options: SamplingParams) -> float:
        return count / answer(model, prompt, options).seconds

    found = in_turn(bench.repeat, lambda: speed(held), lambda: speed(free))
    return ratio(*found, unit="tokens per second", num_tokens=count)


def kv_int8_decode_ratio(bench: Bench) -> Figure:
    """Decode speed after 4,096 tokens: two models, each in the middle of an answer, read in turn."""
    context = DEPTH + (bench.repeat + 1) * KV_TOKENS
    prompt = bench.prompt(DEPTH)
    with (
        bench.load(context=context, kv_cache_dtype="int8") as small,
        bench.load(context=context, kv_cache_dtype="bf16") as large,
        small.generate(prompt, params(small, context - DEPTH)) as int8,
        large.generate(prompt, params(large, context - DEPTH)) as bf16,
    ):
        for stream in (int8, bf16):
            next(stream)
            _decode(stream, KV_TOKENS // 2)
        found = in_turn(bench.repeat, lambda: _decode(int8, KV_TOKENS), lambda: _decode(bf16, KV_TOKENS))
    return ratio(*found, unit="tokens per second")


def _decode(stream: Stream, count: int) -> float:
    """Tokens a second."""
    begin = time.perf_counter()
    for _ in range(count):
        next(stream)
    return count / (time.perf_counter() - begin)


def overhead_share(bench: Bench) -> Figure:
    """What the reader of an answer waits for outside the kernels: the part of the time that is Python's."""
    model = bench.model
    shares = []
    runner = model.engine.runner
    for _ in range(bench.repeat):
        with model.generate(bench.prompt(OVERHEAD_PROMPT), params(model, OVERHEAD_TOKENS)) as stream:
            next(stream)
            native = 0.0
            begin = time.perf_counter()
            for _ in stream:
                native += runner.last_seconds
            wall = time.perf_counter() - begin
        shares.append((wall - native) / wall)
    return median(shares)
