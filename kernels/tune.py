"""Chooses what is fastest on this machine's processor, with the same bits: once, when kernels are compiled.

The shape of the register tile is timed on products of short and of long rows, the product of bf16 pairs on a tile of
attention, all in the first caches. What a rule says (`Target.rule`) stays unless something else beats it by more than
noise.
"""

import math
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from edgellm.kernels.jit import Entry, Library
from edgellm.kernels.ops import CHUNK, KV_BLOCK, META_WORDS, QUERY_STRIDE
from edgellm.kernels.panels import BLOCK
from edgellm.kernels.quants.int4 import Int4
from edgellm.kernels.quants.int4_asym import Int4Asym
from edgellm.kernels.quants.quant import Quant
from edgellm.kernels.targets import Choice, Target, Tile

QUANTS = (Int4(32), Int4Asym(32))
ROWS = 48  # a multiple of every tile's height
INPUTS = (576, 2048)  # of a row: as in SmolLM2-135M and Llama-3.2-1B
QUERIES, HEAD_SIZE = 8, 64
QUERY_BYTES = QUERIES * QUERY_STRIDE * 8  # room for pairs of 8 bytes
ROUNDS, ROUND_SECONDS = 10, 0.001
NOISE = 0.02
Way = TypeVar("Way")
Call = Callable[[int], None]  # runs so many times


def tiles(target: Target) -> tuple[Tile, ...]:
    """Shapes that fit the registers, that of the rule first."""
    if target.has_32_registers:
        return Tile(1, 12), Tile(2, 6), Tile(1, 8)
    return Tile(1, 2), Tile(1, 3), Tile(1, 4)


def bf16_ways(target: Target) -> tuple[bool, ...]:
    """Whether to multiply by AVX512-BF16, what the rule says first; nothing where there is no choice."""
    return (target.rule.fast_bf16, not target.rule.fast_bf16) if target.has("avx512bf16") else ()


def product_name(quant: Quant, tile: Tile) -> str:
    return f"product_{quant.unit}_{tile.halves}x{tile.tokens}"


def attend_name(fast_bf16: bool) -> str:
    return "attend_native" if fast_bf16 else "attend_split"


def choose(target: Target, probes: Library) -> Choice:
    """The fastest of the ways that `cpu.probes` has compiled."""
    tile = _fastest([product_times(probes, quant, tiles(target), inputs) for quant in QUANTS for inputs in INPUTS])
    ways = bf16_ways(target)
    return Choice(tile, _fastest([attend_times(probes, ways)]) if ways else False)


def product_times(probes: Library, quant: Quant, shapes: tuple[Tile, ...], inputs: int) -> dict[Tile, float]:
    """Seconds that ROWS rows of so many inputs take with each shape."""
    blocks = inputs // BLOCK
    weights = _floats(blocks * (BLOCK * 16 + 64 + 64) // 4)
    rows = _floats(ROWS * (blocks * (BLOCK + 4 * META_WORDS) + 128) // 4)

    def call(entry: Entry) -> Call:
        return lambda repeats: entry(weights.ctypes.data, rows.ctypes.data, blocks, repeats)

    return _times({shape: call(probes.entry(product_name(quant, shape))) for shape in shapes})


def attend_times(probes: Library, ways: tuple[bool, ...]) -> dict[bool, float]:
    """Seconds that a block of attention takes each way."""
    queries = _floats(QUERY_BYTES // 4 + QUERIES * CHUNK)
    block = _floats(KV_BLOCK * HEAD_SIZE // 2)
    out = _floats(QUERIES * (CHUNK + BLOCK))

    def call(entry: Entry) -> Call:
        return lambda repeats: entry(queries.ctypes.data, block.ctypes.data, out.ctypes.data, repeats)

    return _times({way: call(probes.entry(attend_name(way))) for way in ways})


def _floats(count: int) -> NDArray[np.float32]:
    """Memory whose words are harmless numbers, whether they are read as float32, f16, bf16 or integers."""
    return np.full(count, np.float32(0.5))


def _times(calls: dict[Way, Call]) -> dict[Way, float]:
    """Seconds of each, the least of several rounds in turn."""
    repeats = 1
    best = dict.fromkeys(calls, math.inf)
    first = next(iter(calls.values()))
    while _seconds(first, repeats) < ROUND_SECONDS:
        repeats *= 2
    for _ in range(ROUNDS):
        for way, call in calls.items():
            best[way] = min(best[way], _seconds(call, repeats) / repeats)
    return best


def _seconds(call: Call, repeats: int) -> float:
    start = time.perf_counter()
    call(repeats)
    return time.perf_counter() - start


def _fastest(tables: list[dict[Way, float]]) -> Way:
    """The least product of times; the first way where no other is faster by more than noise."""
    total = {way: math.prod(times[way] for times in tables) ** (1 / len(tables)) for way in tables[0]}
    first = next(iter(total))
    best = min(total, key=lambda way: total[way])
    return best if total[best] < (1 - NOISE) * total[first] else first
