"""Mixed requests for a long time, with readers that go away: what is left behind at the end.

Run:  python benchmarks/soak.py MODEL [--requests 2000]

Four threads and an asyncio loop ask, for greedy and sampled answers with shared beginnings; every fifth is closed,
abandoned or cancelled before its end. Ends with an error unless all KV blocks are free and the books balance.
"""

import argparse
import asyncio
import contextlib
import json
import random
import sys
import threading
import time
from dataclasses import dataclass

import psutil

import edgellm
from edgellm import Model, SamplingParams

MB = 1_000_000
READERS, TASKS = 4, 4
PREFIX_TOKENS, LONGEST_ANSWER = 60, 24
WARM_UP = 0.2  # of the requests come before the first look at the memory: buffers and caches fill

KV_MEMORY = 64 << 20  # bytes, which cached prefixes fill early: what grows afterwards is a leak


@dataclass(frozen=True)
class SoakReport:
    num_requests: int
    seconds: float
    warm_mb: float  # resident memory when buffers and caches are full, before the rest of the requests
    end_mb: float
    num_blocks: int  # free before
    num_free_blocks: int  # free at the end


def soak(model: Model, num_requests: int, seed: int = 0) -> SoakReport:
    """Errors: AssertionError where the books of the KV memory do not balance, and whatever a request raises."""
    begin = time.perf_counter()
    free = model.num_free_blocks
    warm_up = int(num_requests * WARM_UP)
    _run(model, warm_up, seed)
    warm = _resident_mb()
    _run(model, num_requests - warm_up, seed + 1)
    model.check_integrity()
    return SoakReport(
        num_requests, time.perf_counter() - begin, warm, _resident_mb(), free, model.num_free_blocks
    )  # fmt: skip


def _run(model: Model, num_requests: int, seed: int) -> None:
    shares = [num_requests * part // (READERS + 1) for part in range(READERS + 2)]
    errors: list[BaseException] = []

    def work(number: int) -> None:
        rng = random.Random(seed * 100 + number)
        count = shares[number + 1] - shares[number]
        try:
            if number == READERS:
                asyncio.run(_read_in_tasks(model, rng, count))
            else:
                for _ in range(count):
                    _read(model, rng)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(READERS + 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def _request(rng: random.Random, vocabulary: int) -> tuple[list[int], SamplingParams]:
    beginning = random.Random(rng.randrange(5))  # one of five
    prompt = [beginning.randrange(3, vocabulary) for _ in range(rng.randrange(PREFIX_TOKENS))]
    prompt += [rng.randrange(3, vocabulary) for _ in range(rng.randrange(1, 9))]
    params = SamplingParams(
        max_tokens=rng.randrange(1, LONGEST_ANSWER),
        temperature=rng.choice([0.0, 0.8]),
        repetition_penalty=rng.choice([1.0, 1.2]),
        logprobs=rng.choice([None, None, 3]),
        stop=rng.choice([(), ("the", "e")]),
        speculation=rng.choice(["off", "on", "auto"]),
    )
    return prompt, params


def _read(model: Model, rng: random.Random) -> None:
    """To the end, or only a few pieces; then it is closed, or nobody holds it any more."""
    stream = model.generate(*_request(rng, model.network.vocabulary), priority=rng.randrange(2))
    leaves_after = rng.randrange(5) if rng.random() < 0.2 else None
    for number, _ in enumerate(stream):
        if number == leaves_after:
            if rng.random() < 0.5:
                stream.close()
            break


async def _read_in_tasks(model: Model, rng: random.Random, count: int) -> None:
    """A few tasks at a time, of which some are cancelled."""

    async def read() -> None:
        async for _ in model.generate(*_request(rng, model.network.vocabulary)):
            pass

    for first in range(0, count, TASKS):
        tasks = [asyncio.create_task(read()) for _ in range(min(TASKS, count - first))]
        await asyncio.sleep(0)
        if rng.random() < 0.5:
            tasks[0].cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task


def _resident_mb() -> float:
    return float(psutil.Process().memory_info().rss) / MB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="name of a model, a packed file, or a GGUF file")
    parser.add_argument("--requests", type=int, default=2000)
    options = parser.parse_args()
    with edgellm.load(options.model, kv_memory=KV_MEMORY) as model:
        report = soak(model, options.requests)
    sys.stdout.write(json.dumps(vars(report), indent=2) + "\n")
    if report.num_free_blocks != report.num_blocks:
        sys.exit(f"{report.num_blocks - report.num_free_blocks} KV blocks were not given back")


if __name__ == "__main__":
    main()
