"""Units: sources that are compiled to an object file each, when a model needs them.

    core                operations, epilogues and the team: kernels/cpu
    weight formats      product_ and row_<Quant.kernel>: a file of kernels/quants, of one format or a few akin
    a KV format         score_, values_, query_, key_ and value_<name>: a file of kernels/kv_formats
    a family's own      what its graph calls, by name

A unit is a Python file with `entry_points()`, whose kernels call nothing of another unit but through addresses in
records. So a file of the cache depends on the core's sources and on the unit's, and on no other unit.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from edgellm.kernels.kv_formats import kv_formats
from edgellm.kernels.quants import quants

FOLDER = Path(__file__).parent


class Unit(NamedTuple):
    """`name` begins the names of its files in a cache, and has no dash."""

    name: str
    source: Path


CORE = Unit("core", FOLDER / "cpu" / "__init__.py")


def weight_unit(unit: str) -> Unit:
    """The kernels of a weight format, by `Quant.unit`."""
    return Unit(unit, FOLDER / "quants" / f"{unit}.py")


def kv_unit(name: str) -> Unit:
    """The kernels of a KV format."""
    return Unit(f"kv_{name}", FOLDER / "kv_formats" / f"{name}.py")


def own_units() -> tuple[Unit, ...]:
    """All units that are part of edgellm but a family's."""
    weights: Iterable[str] = dict.fromkeys(quant.unit for quant in quants().values())
    return (CORE, *map(weight_unit, weights), *map(kv_unit, kv_formats()))


def core_sources() -> list[Path]:
    """What every unit depends on: all sources of kernels/ but those that are a unit of their own."""
    others = {unit.source for unit in own_units() if unit != CORE}
    return [path for path in sorted(FOLDER.rglob("*.py")) if path not in others]
