"""What requests feel of each other: pauses, readers by the dozen, a draft model for two, a reader that is slow.

Run:  python benchmarks/company.py MODEL [--draft MODEL] [--repeat 5]

    pause       the longest wait for a token of one request while another begins to draft, in steps of two rows
    readers     time of a step outside the kernels with 64 tasks of asyncio that read, against one, with a thread that
                drives; a step computes 32 requests at most
    draft       tokens per second of two requests together, against one after the other, with a draft model
    slow        tokens per second of one reader, beside one that reads a token a second, against beside one that ended

Every figure is the median of the repeats, with the least and greatest. The machine should have nothing else to do.
"""

import argparse
import asyncio
import statistics
import sys
import threading
import time
from collections.abc import Sequence

import edgellm
from edgellm import Model, SamplingParams

PROMPT = "The history of the lighthouse at the end of the long pier begins with a"
REPEATING = "one two three four five six seven eight nine ten " * 3
READERS = 64
TOKENS = 64


def say(name: str, values: Sequence[float], unit: str) -> None:
    low = min(values)
    high = max(values)
    sys.stdout.write(f"{name:52} {statistics.median(values):9.2f} ({low:.2f}-{high:.2f}) {unit}\n")


def asked(**options: object) -> SamplingParams:
    return SamplingParams(**{"max_tokens": TOKENS, "ignore_eos": True, **options})  # type: ignore[arg-type]


def pause(model: Model) -> tuple[float, float]:
    """The longest step that a second request waits for while a first begins to draft; and the median one."""
    second = model.generate(PROMPT, asked(max_tokens=3 * TOKENS, speculation="off"))
    next(second)
    first = model.generate(REPEATING, asked())
    waits = []
    while first.finish_reason is None:
        begin = time.perf_counter()
        next(second)
        waits.append(time.perf_counter() - begin)
    second.close()
    assert first.usage.num_drafted_tokens > 0, "nothing was drafted"
    return max(waits[1:]), statistics.median(waits[1:])  # the first computes the prompt


def outside_kernels(model: Model, num_readers: int) -> float:
    """Seconds of a step that are not the kernels', with so many tasks that read."""
    runner = model.engine.runner
    steps: list[float] = []
    start = runner.start

    def counting(*arguments: object, **options: object) -> None:
        start(*arguments, **options)  # type: ignore[arg-type]
        steps.append(runner.last_seconds)

    runner.start = counting  # type: ignore[method-assign]

    async def read_all() -> float:
        prompts = [model.tokenize(f"{number} {PROMPT}") for number in range(num_readers)]
        streams = [model.generate(prompt, asked(speculation="off")) for prompt in prompts]
        for stream in streams:  # until all decode
            await anext(stream)
        steps.clear()
        begin = time.perf_counter()
        await asyncio.gather(*(stream.result_async() for stream in streams))
        return time.perf_counter() - begin

    try:
        wall = asyncio.run(read_all())
    finally:
        runner.start = start  # type: ignore[method-assign]
    return (wall - sum(steps)) / len(steps)


def speed_together(model: Model, *, together: bool) -> float:
    prompts = [REPEATING, PROMPT]
    begin = time.perf_counter()
    if together:
        model.generate_many(prompts, asked())
    else:
        for prompt in prompts:
            model.complete(prompt, asked())
    return 2 * TOKENS / (time.perf_counter() - begin)


def speed_beside_slow(model: Model, *, is_slow: bool) -> float:
    """Tokens per second of a reader beside another, which reads a token a second, or has left."""
    other = model.generate(REPEATING, asked(max_tokens=None, context_policy="stop", speculation="off"))
    ended = threading.Event()

    def read_slowly() -> None:
        while not ended.wait(1.0):
            next(other)

    next(other)
    if not is_slow:
        other.close()
    while is_slow and not other._request.is_parked:
        time.sleep(0.01)
    reader = threading.Thread(target=read_slowly) if is_slow else None
    if reader is not None:
        reader.start()
    begin = time.perf_counter()
    model.complete(PROMPT, asked(max_tokens=4 * TOKENS, speculation="off"))
    seconds = time.perf_counter() - begin
    ended.set()
    if reader is not None:
        reader.join()
    other.close()
    return 4 * TOKENS / seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--draft")
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()
    for driver in ("reader", "thread"):
        found = []
        for _ in range(args.repeat):
            with edgellm.load(args.model, driver=driver) as model:  # nothing is known of what steps cost
                found.append(pause(model))
        say(f"pause, {driver}: longest wait", [1000 * longest for longest, _ in found], "ms")
        say(f"pause, {driver}: against the median step", [longest / step for longest, step in found], "x")
    with edgellm.load(args.model, driver="thread") as model:
        one = []
        many = []
        for _ in range(args.repeat):
            one.append(1e6 * outside_kernels(model, 1))
            many.append(1e6 * outside_kernels(model, READERS))
        say("step outside the kernels, 1 reader", one, "us")
        say(f"step outside the kernels, {READERS} readers", many, "us")
        alone = []
        beside = []
        for _ in range(args.repeat):
            alone.append(speed_beside_slow(model, is_slow=False))
            beside.append(speed_beside_slow(model, is_slow=True))
        say("fast reader alone", alone, "tokens/s")
        say("fast reader beside a slow one", beside, "tokens/s")
        say("ratio", [b / a for a, b in zip(alone, beside, strict=True)], "x")
    if args.draft:
        with edgellm.load(args.model, draft=args.draft) as model:
            ratios = []
            for _ in range(args.repeat + 1):
                after = speed_together(model, together=False)
                ratios.append(speed_together(model, together=True) / after)
            say("two requests with a draft model, against in turn", ratios[1:], "x")
    return 0


if __name__ == "__main__":
    sys.exit(main())
