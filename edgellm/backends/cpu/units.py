"""Which kernels a model needs."""

from collections.abc import Iterable

from edgellm.kernels.units import CORE, Unit, kv_unit, weight_unit
from edgellm.packed.header import PackedHeader
from edgellm.runtime.build import network_graph


def units_of(headers: Iterable[PackedHeader], kv_cache_dtypes: Iterable[str]) -> tuple[Unit, ...]:
    """The units that models with these headers call, for caches of these formats."""
    headers = list(headers)
    weights = dict.fromkeys(quant.unit for header in headers for quant in header.quants.values())
    calls = [op.call for header in headers for op in network_graph(header.network).operations if op.call]
    families = dict.fromkeys(Unit(call.unit, call.source) for call in calls)
    return (CORE, *map(weight_unit, weights), *map(kv_unit, kv_cache_dtypes), *families)
