"""`edgellm bench --engine`: all measurements of the engine, one after the other, beside what is aimed at."""

from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from edgellm.apps.engine_bench import caching, concurrency, costs, speculation
from edgellm.apps.engine_bench.bench import Bench, Figure
from edgellm.apps.loading import load
from edgellm.apps.progress import bar
from edgellm.apps.tables import write_table

Unit = Literal["x", "ms", "%"]
COLUMNS: dict[str, Literal["left", "right"]] = {
    "": "left", "median": "right", "repeats": "right", "aim": "right", "met": "left"
}  # fmt: skip


@dataclass(frozen=True)
class Measurement:
    """A figure's function, whose name is its key in the JSON, and what is aimed at."""

    measure: Callable[[Bench], Figure]
    title: str
    unit: Unit
    relation: Literal[">=", "<="]
    aim: float
    context: int  # tokens that it takes
    can_run: Callable[[], bool] = lambda: True
    missing: str = ""  # why it cannot

    @property
    def key(self) -> str:
        return self.measure.__name__

    def is_met(self, value: float) -> bool:
        return value >= self.aim if self.relation == ">=" else value <= self.aim


MEASUREMENTS = [
    Measurement(
        caching.first_token_100_ms, "first token of 100", "ms", "<=", 200, caching.SHORT_PROMPT
    ),
    Measurement(
        caching.cached_memory_speedup, "first token of 2,000 cached in memory", "x", ">=", 20, caching.PROMPT
    ),
    Measurement(
        caching.cached_disk_speedup, "first token of 2,000 cached on disk", "x", ">=", 10, caching.PROMPT
    ),
    Measurement(
        speculation.speculation_repeat_speedup, "speculation, text that repeats", "x", ">=", 2.5, 1024
    ),
    Measurement(
        speculation.speculation_free_ratio, "speculation, free text, the worst", "x", ">=", 0.97, 320
    ),
    Measurement(
        concurrency.concurrent4_speedup, "4 requests at once", "x", ">=", 2, concurrency.PROMPT + concurrency.TOKENS
    ),
    Measurement(
        concurrency.short_request_share, "20 tokens beside 4,000, of these alone", "%", "<=", 0.15,
        concurrency.LONG_PROMPT
    ),
    Measurement(
        costs.json_ratio, "JSON of a schema against free text", "x", ">=", 0.9, 512,
        costs.can_constrain, "llguidance is not installed; `pip install 'edgellm[constrain]'` brings it",
    ),
    Measurement(
        costs.kv_int8_decode_ratio, "INT8 against bf16 keys and values, 4,096 deep", "x", ">=", 1.15, 4400
    ),
    Measurement(
        costs.overhead_share, "Python's part of decoding", "%", "<=", 0.04,
        costs.OVERHEAD_PROMPT + costs.OVERHEAD_TOKENS,
    ),
]  # fmt: skip


def measure(path: Path, args: Namespace) -> dict[str, Any]:
    """All figures by key, None for those skipped; `details` has their repeats, `skipped` the reasons."""
    bench = Bench(partial(load, path, args, isa=args.isa), args.repeat)
    found: dict[str, Figure] = {}
    skipped: dict[str, str] = {}
    with bench.model as model, bar("measuring") as progress:
        for done, measurement in enumerate(MEASUREMENTS):
            progress(done, len(MEASUREMENTS))
            if not measurement.can_run():
                skipped[measurement.key] = measurement.missing
            elif model.context < measurement.context:
                skipped[measurement.key] = f"takes {measurement.context} tokens, the context is {model.context}"
            else:
                found[measurement.key] = measurement.measure(bench)
    return {
        "model": model.name,
        "isa": model.isa,
        "threads": model.threads,
        "kv_cache_dtype": args.kv_cache_dtype,
        "context": model.context,
        **{key: found[key].value if key in found else None for key in (one.key for one in MEASUREMENTS)},
        "aims": {one.key: {"relation": one.relation, "aim": one.aim} for one in MEASUREMENTS},
        "details": {key: {"values": figure.values, **figure.details} for key, figure in found.items()},
        "skipped": skipped,
    }


def show(facts: dict[str, Any]) -> None:
    write_table(COLUMNS, _rows(facts))


def _rows(facts: dict[str, Any]) -> Iterator[list[str]]:
    for one in MEASUREMENTS:
        value = facts[one.key]
        aim = f"{one.relation} {_shown(one.aim, one.unit)}"
        if value is None:
            yield [one.title, "skipped", "", aim, facts["skipped"][one.key]]
        else:
            values = facts["details"][one.key]["values"]
            spread = f"{_shown(min(values), one.unit)} to {_shown(max(values), one.unit)} in {len(values)}"
            yield [one.title, _shown(value, one.unit), spread, aim, "yes" if one.is_met(value) else "no"]


def _shown(value: float, unit: Unit) -> str:
    return f"{value * 100:.3g} %" if unit == "%" else f"{value:.3g} {unit}"
