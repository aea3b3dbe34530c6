"""What the compiler made of the kernels: the instruction that each target is for, no registers spilled where it counts.

Targets of other processors are compiled and read, not run.
"""

import json
import re
import subprocess
import sys
from functools import cache

import pytest

from edgellm.kernels.quants import quants
from edgellm.kernels.targets import X86_LEVELS, Target
from edgellm.kernels.units import own_units

EMIT = """
import json, sys
from edgellm.kernels.compile import compile_units
from edgellm.kernels.targets import Target
from edgellm.kernels.units import own_units
texts = {}
for unit, kernels in compile_units(Target(*sys.argv[1:]), own_units()):
    kernels.machine.set_asm_verbosity(True)
    texts[unit.name] = kernels.machine.emit_assembly(kernels.module)
json.dump(texts, sys.stdout)
"""
Functions = dict[str, str]  # the assembly of each, by its mangled name
WEIGHT_KERNELS = {
    unit: {quant.kernel for quant in quants().values() if quant.unit == unit}
    for unit in {quant.unit for quant in quants().values()}
}


def x86(isa: str, *more: str, cpu: str | None = None) -> Target:
    generic, features = X86_LEVELS[isa]
    flags = ",".join(f"+{feature}" for feature in (*features, *more))
    return Target(isa, "x86_64-unknown-linux-gnu", cpu or generic, flags)


TARGETS = {
    # Scheduled for the processor that the tile was measured on; for x86-64-v4 in general LLVM spills 2 or 3 vectors.
    "avx512-vnni": (x86("avx512-vnni", "gfni", "avx512bf16", cpu="znver5"), r"vpdpbusd\s.*%zmm"),
    "avx-vnni": (x86("avx-vnni"), r"\{vex\}\s+vpdpbusd\s.*%ymm"),
    "avx2": (x86("avx2"), r"vpmaddubsw\s.*%ymm"),
    "neon-dotprod": (
        Target("neon-dotprod", "aarch64-unknown-linux-gnu", "cortex-a76", "+neon,+dotprod,+fullfp16"),
        r"sdot\s+v\d+\.4s, v\d+\.16b",
    ),
    "wasm-simd": (
        Target("wasm-simd", "wasm32-unknown-unknown", "generic", "+simd128,+relaxed-simd"),
        r"i32x4\.(relaxed_dot_i8x16_i7x16_add_s|dot_i16x8_s)",
    ),
}


@cache
def functions(target: Target) -> dict[str, Functions]:
    """The functions of every unit."""
    command = [sys.executable, "-P", "-c", EMIT, target.isa, target.triple, target.cpu, target.features]
    emitted = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert set(emitted) == {unit.name for unit in own_units()}
    units = {unit: re.split(r"\n(?=\w[^\n]*:\s)", text) for unit, text in emitted.items()}
    return {
        unit: {name: part for part in parts if re.fullmatch(r"(?!_ZN08NumbaEnv)\w+", name := part.split(":")[0])}
        for unit, parts in units.items()
    }


@pytest.mark.parametrize("name", TARGETS)
def test_tiles_use_the_instruction_that_the_target_is_for(name: str) -> None:
    """In each weight format a tile of every height, but for small ones that became part of their caller."""
    target, instruction = TARGETS[name]
    for unit, kernels in WEIGHT_KERNELS.items():
        found, heights = functions(target)[unit], len(target.heights) * len(kernels)
        tiles = [text for function, text in found.items() if re.search("make_tile.*4tile", function)]
        callers = [text for function, text in found.items() if re.search("make_product.*7product", function)]
        assert len(callers) == len(kernels), unit
        inlined = sum(bool(re.search(instruction, caller)) for caller in callers)
        assert heights - len(kernels) <= len(tiles) + inlined <= heights, unit
        for text in tiles:
            assert re.search(instruction, text), unit


def test_nothing_is_spilled_in_tiles() -> None:
    """But in those of two-level formats, which have the sums of half blocks to hold as well: 23 vectors at most."""
    for unit, found in functions(TARGETS["avx512-vnni"][0]).items():
        spills = {function: len(re.findall("64-byte Spill", text)) for function, text in found.items()}
        hot = [count for function, count in spills.items() if re.search("make_(tile|scores|values)", function)]
        assert bool(hot) == (unit != "core") and max(hot, default=0) <= (23 if unit == "two_level" else 0), unit


def test_webassembly_multiplies_and_adds_in_one_instruction() -> None:
    """And not by a function of a C library, lane by lane."""
    for unit, found in functions(TARGETS["wasm-simd"][0]).items():
        text = "\n".join(found.values())
        assert "f32x4.relaxed_madd" in text, unit
        assert "fmaf" not in text, unit


def test_nothing_outside_is_called_but_the_yield() -> None:
    for unit, found in functions(TARGETS["avx2"][0]).items():
        called = set(re.findall(r"callq?\s+(?:\*%\w+|([A-Za-z_]\w*))", "\n".join(found.values()))) - {""}
        assert {name for name in called if not name.startswith("_ZN7edgellm")} <= {"sched_yield", "memset"}, unit
