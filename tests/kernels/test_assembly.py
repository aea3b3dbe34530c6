"""What the compiler made of the kernels: the instruction that each target is for, no registers spilled where it counts.

Targets of other processors are compiled and read, not run.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from edgellm.kernels.targets import X86_LEVELS, Target

EMIT = """
import sys
from edgellm.kernels.compile import compile_kernels
from edgellm.kernels.targets import Target
module, machine = compile_kernels(Target(*sys.argv[2:]))
machine.set_asm_verbosity(True)
open(sys.argv[1], "w").write(machine.emit_assembly(module))
"""


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


def functions(target: Target, folder: Path) -> dict[str, str]:
    """The assembly of every compiled function, by its mangled name."""
    out = folder / "kernels.s"
    command = [sys.executable, "-P", "-c", EMIT, str(out), target.isa, target.triple, target.cpu, target.features]
    subprocess.run(command, check=True, capture_output=True, text=True)
    parts = re.split(r"\n(?=\w[^\n]*:\s)", out.read_text())
    return {name: part for part in parts if re.fullmatch(r"\w+", name := part.split(":")[0])}


@pytest.mark.parametrize("name", TARGETS)
def test_tiles_use_the_instruction_that_the_target_is_for(name: str, tmp_path: Path) -> None:
    target, instruction = TARGETS[name]
    found = functions(target, tmp_path)
    # For each of three layouts one of every height, but for small ones that became part of their caller
    tiles = [text for function, text in found.items() if re.search("make_tile.*4tile", function)]
    callers = [text for function, text in found.items() if re.search("make_product.*7product", function)]
    inlined = sum(bool(re.search(instruction, text)) for text in callers)
    assert len(callers) == 3
    heights = len(target.heights)
    assert 3 * (heights - 1) <= len(tiles) + inlined <= 3 * heights
    for text in tiles:
        assert re.search(instruction, text)
    if name == "avx512-vnni":
        spills = {function: len(re.findall("64-byte Spill", text)) for function, text in found.items()}
        hot = {
            function: count for function, count in spills.items() if re.search("make_(tile|scores|values)", function)
        }
        assert hot and not any(hot.values()), hot


def test_webassembly_multiplies_and_adds_in_one_instruction(tmp_path: Path) -> None:
    """And not by a function of a C library, lane by lane."""
    text = "\n".join(functions(TARGETS["wasm-simd"][0], tmp_path).values())
    assert "f32x4.relaxed_madd" in text
    assert "fmaf" not in text


def test_nothing_outside_is_called_but_the_yield(tmp_path: Path) -> None:
    target, _ = TARGETS["avx2"]
    text = "\n".join(functions(target, tmp_path).values())
    called = set(re.findall(r"callq?\s+(?:\*%\w+|([A-Za-z_]\w*))", text)) - {""}
    assert {name for name in called if not name.startswith("_ZN7edgellm")} <= {"sched_yield", "memset"}
