"""Machines that kernels are compiled for: a processor, its instruction sets, and what follows from them."""

import itertools
import json
import platform
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from edgellm.errors import KernelError


class Tile(NamedTuple):
    """The register tile of a matrix product: half panels of 16 rows times tokens."""

    halves: int  # 1 or 2
    tokens: int


@dataclass(frozen=True)
class Target:
    """What the compiler is told, and what the kernels may use."""

    isa: str  # a name of ISAS
    triple: str  # LLVM's name of the platform
    cpu: str  # LLVM's name of the processor
    features: str  # LLVM's feature string, "+avx2,+fma,..."

    def has(self, feature: str) -> bool:
        return f"+{feature}" in self.features.split(",")

    @property
    def tile(self) -> Tile:
        # Largest shape whose accumulators stay in registers: 32 of 512 bits hold 2 x 6 x 2 vectors, the
        # weights and a broadcast; 16 of 256 bits hold two vectors for each of ours.
        return Tile(2, 6) if self.has_32_registers else Tile(1, 2)

    @property
    def has_32_registers(self) -> bool:
        """Of the vectors that a tile is made of: 32 of 16 lanes, not 16 of 8 lanes or 32 of 4."""
        return self.isa == "avx512-vnni"

    @property
    def fast_bf16(self) -> bool:
        """Whether bf16 pairs are best multiplied by AVX512-BF16; one Intel core made 50 G products/s so, 90 without."""
        return self.has("avx512bf16") and self.cpu.startswith("znver")

    @property
    def native_f16(self) -> bool:
        """Whether f16 <-> f32 is an instruction; elsewhere LLVM would call a runtime library that is not there."""
        return self.has("f16c") or self.triple.startswith(("aarch64", "arm64"))

    @property
    def yield_symbol(self) -> str:
        """The C function that gives the processor to another thread."""
        return "SwitchToThread" if "windows" in self.triple else "sched_yield"


# From the most capable to the least; the features named are what a kernel of that level relies on.
X86_LEVELS = {
    "avx512-vnni": ("x86-64-v4", ("avx512f", "avx512bw", "avx512vl", "avx512vnni", "f16c", "fma")),
    "avx-vnni": ("x86-64-v3", ("avx2", "avxvnni", "f16c", "fma")),
    "avx2": ("x86-64-v3", ("avx2", "f16c", "fma")),
}
ISAS = (*X86_LEVELS, "neon-dotprod", "wasm-simd", "plain")


def host_target() -> Target:
    """The processor in front of us, with every feature that it really has."""
    import llvmlite.binding as llvm

    features = llvm.get_host_cpu_features()
    triple = llvm.get_process_triple()
    isa = "plain"
    if platform.machine().lower() in ("x86_64", "amd64"):
        isa = next((name for name, (_, needs) in X86_LEVELS.items() if all(features.get(f) for f in needs)), "plain")
    elif platform.machine().lower() in ("aarch64", "arm64") and features.get("dotprod"):
        isa = "neon-dotprod"
    # LLVM would split 512-bit vectors in two on processors that it believes clock down.
    flags = [("+" if on else "-") + name for name, on in sorted(features.items()) if name != "prefer-256-bit"]
    return Target(isa, triple, llvm.get_host_cpu_name(), ",".join(flags))


def write_host() -> None:
    """`host_target()` as JSON to standard output, for a process that does not want LLVM in its memory."""
    sys.stdout.write(json.dumps(asdict(host_target())))


def processor_description() -> str | None:
    """What the system says of the processor, as far as it stays the same; None where it does not say."""
    try:
        with Path("/proc/cpuinfo").open() as file:
            lines = list(itertools.takewhile(str.strip, file))  # of the first processor
    except OSError:
        return None
    stable = ("vendor_id", "cpu family", "model", "model name", "stepping", "flags")
    return "".join(line for line in lines if line.partition(":")[0].strip() in stable) or None


def target_for(isa: str | None, host: Target | None = None) -> Target:
    """The host restricted to an instruction set of ISAS, or all of the host for None.

    `host` is what `host_target` says, where that is already known. Errors: KernelError.
    """
    host = host or host_target()
    if isa is None or isa == host.isa:
        return host
    if isa not in ISAS:
        raise KernelError(f"instruction set {isa!r} is unknown; known: {', '.join(ISAS)}")
    if isa == "plain":
        generic = "x86-64" if host.isa in X86_LEVELS else "generic"
        return Target("plain", host.triple, generic, "")
    if isa not in X86_LEVELS or not all(host.has(feature) for feature in X86_LEVELS[isa][1]):
        raise KernelError(f"this processor ({host.cpu}) does not have the instruction set {isa!r}; it has: {host.isa}")
    cpu, needs = X86_LEVELS[isa]
    return Target(isa, host.triple, cpu, ",".join(f"+{feature}" for feature in needs))
