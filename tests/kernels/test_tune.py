"""What tuning may choose from computes the same bits, and the fastest is chosen, once."""

import itertools
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from edgellm.kernels import jit, tune
from edgellm.kernels.jit import Entry, Library
from edgellm.kernels.ops import MAX_TILE_ROWS
from edgellm.kernels.targets import Choice, Target, Tile, from_json, host_target
from edgellm.kernels.tune import QUANTS, ROWS, bf16_ways, tiles
from edgellm.kernels.units import own_units

WIDE = Target("avx512-vnni", "x86_64-unknown-linux-gnu", "sapphirerapids", "+avx512f,+avx512vnni,+avx512bf16")
NARROW = Target("avx2", "x86_64-unknown-linux-gnu", "haswell", "+avx2")


def test_every_tile_and_every_way_computes_the_same_bits() -> None:
    """On this processor, and as if it had AVX2 only."""
    host, digests, counts = host_target(), set(), Counter[str]()
    for isa in {host.isa, "avx2"} & set(host.levels):
        command = [sys.executable, "-m", "tests.kernels.probe_bits", isa]
        root = Path(__file__).parents[2]
        lines = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout.splitlines()
        digests |= set(lines)
        counts += Counter(line.partition(":")[0] for line in lines)
    assert len(digests) == len(counts), digests
    for quant in QUANTS:
        assert counts[f"product {quant.name}"] >= len(tiles(host))
    assert counts["attention"] == len(bf16_ways(host))


@pytest.mark.parametrize("target", [WIDE, NARROW], ids=["32 registers", "16 registers"])
def test_tiles_fit_the_buffers_and_the_rows_that_are_timed(target: Target) -> None:
    assert tiles(target)[0] == target.rule.tile
    for tile in tiles(target):
        assert tile.tokens <= MAX_TILE_ROWS and ROWS % tile.tokens == 0 and tile.halves in (1, 2)


class FakeProbes(Library):
    """Entries that take the seconds given for a part of their name, on a clock of their own."""

    def __init__(self, **seconds: float) -> None:
        self.seconds, self.now = seconds, 0.0

    def entry(self, name: str) -> Entry:
        def run(a: int, b: int, c: int, repeats: int) -> None:
            self.now += repeats * next((s for part, s in self.seconds.items() if name.endswith(part)), 1e-6)

        return run


@pytest.mark.parametrize(
    ("seconds", "tile", "fast_bf16"),
    [
        ({"2x6": 0.9e-6, "native": 2e-6}, Tile(2, 6), False),
        ({"2x6": 0.9e-6, "2_2x6": 1e-6, "1x8": 0.97e-6, "native": 0.5e-6}, Tile(2, 6), True),
        ({"2x6": 0.99e-6, "1x8": 2e-6, "native": 0.99e-6}, Tile(1, 12), False),  # within the noise: as the rule says
    ],
)
def test_the_fastest_is_chosen(
    monkeypatch: pytest.MonkeyPatch, seconds: dict[str, float], tile: Tile, fast_bf16: bool
) -> None:
    probes = FakeProbes(**seconds)
    monkeypatch.setattr(tune.time, "perf_counter", lambda: probes.now)
    assert tune.choose(WIDE, probes) == Choice(tile, fast_bf16)


def test_a_choice_survives_the_file() -> None:
    for halves, fast_bf16 in itertools.product((1, 2), (False, True)):
        target = Target(*list(WIDE.__dict__.values())[:4], Choice(Tile(halves, 7), fast_bf16))
        assert from_json(target.to_json()) == target
        assert (target.tile, target.fast_bf16) == (Tile(halves, 7), fast_bf16)
    assert from_json(WIDE.to_json()) == WIDE


def test_the_host_is_measured_once(library: Library, kernel_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = library.target.measured
    assert measured is not None and measured.tile in tiles(library.target)
    monkeypatch.setattr(jit, "compile_into", None)
    assert jit.load(kernel_cache).target.measured == measured
    assert jit.load(kernel_cache, own_units()).target.measured == measured
