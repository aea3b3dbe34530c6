"""The first token: of a short prompt, and of a long one whose beginning is in the prefix cache."""

import time
from tempfile import TemporaryDirectory

from edgellm.apps.engine_bench.bench import Bench, Figure, median, ratio

PROMPT, FRESH = 2000, 10  # tokens of a long prompt, and at its end those that differ from what is cached
SHORT_PROMPT = 100
PAUSE = 0.5  # seconds between requests, while a model prepares memory for what it may read from the disk


def first_token_100_ms(bench: Bench) -> Figure:
    return median(bench.first_token_seconds(bench.prompt(SHORT_PROMPT)) * 1e3 for _ in range(bench.repeat))


def cached_memory_speedup(bench: Bench) -> Figure:
    """Every prompt is asked twice, the second time with another end."""
    unseen = []
    cached = []
    for _ in range(bench.repeat):
        prompt = bench.prompt(PROMPT)
        unseen.append(bench.first_token_seconds(prompt))
        cached.append(bench.first_token_seconds(prompt[:-FRESH] + bench.prompt(FRESH)))
    return ratio(unseen, cached, unit="seconds")


def cached_disk_speedup(bench: Bench) -> Figure:
    """The model is closed in between, and opened again on the same folder.

    What was never seen is asked of a model without a folder, or writing to the disk would make it look slow, and after
    a pause, or the other model's preparations would.
    """
    prompts = [bench.prompt(PROMPT) for _ in range(bench.repeat)]
    unseen = []
    cached = []
    with TemporaryDirectory(prefix="edgellm-bench-") as folder:
        with bench.load(prefix_cache_dir=folder) as model:
            for prompt in prompts:
                bench.first_token_seconds(prompt, model)
        with bench.load(prefix_cache_dir=folder) as model:
            bench.first_token_seconds(bench.prompt(SHORT_PROMPT), model)
            for prompt in prompts:
                time.sleep(PAUSE)
                unseen.append(bench.first_token_seconds(bench.prompt(PROMPT)))
                cached.append(bench.first_token_seconds(prompt[:-FRESH] + bench.prompt(FRESH), model))
    return ratio(unseen, cached, unit="seconds")
