"""A converter's report as a table: what was stored for each kind of tensor, and what was lost."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from edgellm.apps.tables import write_table
from edgellm.kernels.quants import quants

COLUMNS: dict[str, Literal["left", "right"]] = {
    "tensors": "left",
    "from": "left",
    "stored as": "left",
    "bits/weight": "right",
    "relative error": "right",
}

_LAYER = re.compile(r"layers\.\d+\.")


def write_report(report: Mapping[str, Any]) -> None:
    """A table on standard output of a report as `converters.convert.Report.to_json` gives it."""
    total = ["all", "", "", f"{report['bits_per_weight']:.2f}", _error(report["relative_error"])]
    write_table(COLUMNS, [*kinds(report["tensors"]), total])


def kinds(tensors: Mapping[str, Mapping[str, Any]]) -> Iterator[list[str]]:
    """A row for tensors of the same name in all layers, with the same types; the error is that of the worst."""
    counts: Counter[tuple[str, str, str]] = Counter()
    worst: dict[tuple[str, str, str], float] = {}
    for name, tensor in tensors.items():
        kind = (_LAYER.sub("", name), tensor["source"], tensor["layout"])
        counts[kind] += 1
        worst[kind] = max(worst.get(kind, 0.0), tensor["relative_error"])
    for (name, source, layout), count in counts.items():
        bits = quants()[layout].bits_per_weight
        yield [
            f"{name} x {count}" if count > 1 else name,
            source,
            layout,
            f"{bits:.2f}",
            _error(worst[name, source, layout]),
        ]


def _error(value: float) -> str:
    return f"{value:.3%}" if value else "exact"
