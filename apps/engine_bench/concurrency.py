"""Requests at once: four of a kind, and a short one that comes while a long prompt is computed."""

import time
from concurrent.futures import ThreadPoolExecutor

from edgellm.apps.engine_bench.bench import Bench, Figure, answer, in_turn, params, ratio

REQUESTS, PROMPT, TOKENS = 4, 64, 64
LONG_PROMPT, SHORT_PROMPT = 4000, 20
LEAST_REPEATS = 7  # of the short request, whose worst case counts as well
EARLIEST, LATEST = 0.02, 0.75  # when it comes, as parts of the time that the long prompt takes alone


def concurrent4_speedup(bench: Bench) -> Figure:
    """Tokens a second, all together, of requests at once against one after the other; every time of new prompts."""
    model = bench.model
    options = params(model, TOKENS)

    def one_after_the_other() -> float:
        prompts = [bench.prompt(PROMPT) for _ in range(REQUESTS)]
        begin = time.perf_counter()
        for prompt in prompts:
            answer(model, prompt, options)
        return REQUESTS * TOKENS / (time.perf_counter() - begin)

    def at_once() -> float:
        prompts = [bench.prompt(PROMPT) for _ in range(REQUESTS)]
        begin = time.perf_counter()
        for stream in [model.generate(prompt, options) for prompt in prompts]:
            for _ in stream:
                pass
        return REQUESTS * TOKENS / (time.perf_counter() - begin)

    return ratio(*in_turn(bench.repeat, at_once, one_after_the_other), unit="tokens per second")


def short_request_share(bench: Bench) -> Figure:
    """The short request's first token, as a part of the time that the long prompt takes alone."""
    alone = []
    short = []
    came = []
    with ThreadPoolExecutor(1) as pool:
        for _ in range(max(bench.repeat, LEAST_REPEATS)):
            alone.append(bench.first_token_seconds(bench.prompt(LONG_PROMPT)))
            prompt = bench.prompt(SHORT_PROMPT)
            came_at = bench.draw.uniform(EARLIEST, LATEST) * alone[-1]
            long_one = pool.submit(bench.first_token_seconds, bench.prompt(LONG_PROMPT))
            time.sleep(came_at)
            short.append(bench.first_token_seconds(prompt))
            long_one.result()
            came.append(came_at)
    found = ratio(short, alone, unit="seconds", came_at=came)
    return Figure(found.value, found.values, {**found.details, "worst": max(found.values)})
