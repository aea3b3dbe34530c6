"""Machines that kernels are compiled for: a processor, its instruction sets, and what follows from them."""

import json
import platform
from dataclasses import asdict, dataclass
from typing import NamedTuple

from edgellm.errors import KernelError


class Tile(NamedTuple):
    """The register tile of a matrix product: half panels of 16 rows times tokens."""

    halves: int  # 1 or 2
    tokens: int


class Choice(NamedTuple):
    """What the kernels may do one way or another, with the same bits; see tune.py."""

    tile: Tile
    fast_bf16: bool  # whether bf16 pairs are multiplied by AVX512-BF16

    def __str__(self) -> str:
        return f"tile {self.tile.halves} x {self.tile.tokens}, bf16 by {'AVX512-BF16' if self.fast_bf16 else 'float32'}"


@dataclass(frozen=True)
class Target:
    """What the compiler is told, and what the kernels may use."""

    isa: str  # a name of ISAS
    triple: str  # LLVM's name of the platform
    cpu: str  # LLVM's name of the processor
    features: str  # LLVM's feature string, "+avx2,+fma,..."
    measured: Choice | None = None  # what was fastest on the processor itself; None: by rule

    def has(self, feature: str) -> bool:
        return f"+{feature}" in self.features.split(",")

    @property
    def levels(self) -> tuple[str, ...]:
        """The instruction sets of ISAS that it has, the most capable first."""
        x86 = (name for name, (_, needs) in X86_LEVELS.items() if all(map(self.has, needs)))
        others = () if self.isa in (*X86_LEVELS, "plain") else (self.isa,)
        return (*x86, *others, "plain")

    @property
    def rule(self) -> Choice:
        """What to do where nothing was measured."""
        # Largest shape whose accumulators stay in registers: 32 of 512 bits hold 12 x 2 vectors, the
        # weights and a broadcast; 16 of 256 bits hold two vectors for each of ours.
        tile = Tile(1, 12) if self.has_32_registers else Tile(1, 2)
        # One Intel core made 50 G products/s with AVX512-BF16, 90 without.
        return Choice(tile, self.has("avx512bf16") and self.cpu.startswith("znver"))

    @property
    def choice(self) -> Choice:
        return self.measured or self.rule

    @property
    def tile(self) -> Tile:
        return self.choice.tile

    @property
    def fast_bf16(self) -> bool:
        return self.choice.fast_bf16

    @property
    def heights(self) -> tuple[int, ...]:
        """Tokens that a register tile may have, ascending; the last is the chosen tile's."""
        return (*(height for height in (1, 2, 4, 8) if height < self.tile.tokens), self.tile.tokens)

    def halves(self, tokens: int) -> int:
        """Halves of a panel in a tile of so many tokens: two where they fit, to read weights in one stream."""
        if tokens == self.tile.tokens:
            return self.tile.halves
        return 2 if self.has_32_registers and tokens <= 6 else 1

    @property
    def has_32_registers(self) -> bool:
        """Of the vectors that a tile is made of: 32 of 16 lanes, not 16 of 8 lanes or 32 of 4."""
        return self.isa == "avx512-vnni"

    @property
    def native_f16(self) -> bool:
        """Whether f16 <-> f32 is an instruction; elsewhere LLVM would call a runtime library that is not there."""
        return self.has("f16c") or self.triple.startswith(("aarch64", "arm64"))

    @property
    def yield_symbol(self) -> str:
        """The C function that gives the processor to another thread."""
        return "SwitchToThread" if "windows" in self.triple else "sched_yield"

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def from_json(text: str | bytes) -> Target:
    """What `Target.to_json` wrote."""
    fields = json.loads(text)
    if fields["measured"] is not None:
        tile, fast_bf16 = fields["measured"]
        fields["measured"] = Choice(Tile(*tile), fast_bf16)
    return Target(**fields)


# From the most capable to the least; the features named are what a kernel of that level relies on.
X86_LEVELS = {
    "avx512-vnni": ("x86-64-v4", ("avx512f", "avx512bw", "avx512vl", "avx512vnni", "f16c", "fma")),
    "avx-vnni": ("x86-64-v3", ("avx2", "avxvnni", "f16c", "fma")),
    "avx2": ("x86-64-v3", ("avx2", "f16c", "fma")),
}
ISAS = (*X86_LEVELS, "neon-dotprod", "wasm-simd", "plain")


def host_target() -> Target:
    """This machine's processor, with every feature that it really has."""
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


def generic_target(isa: str, triple: str) -> Target:
    """Any processor of a platform that has an instruction set of X86_LEVELS, or "plain". Errors: KernelError."""
    is_x86 = triple.startswith("x86_64")
    if isa == "plain":
        return Target(isa, triple, "x86-64" if is_x86 else "generic", "")
    if isa not in X86_LEVELS or not is_x86:
        known = (*X86_LEVELS, "plain") if is_x86 else ("plain",)
        raise KernelError(f"isa {isa!r} must be one of this platform's ({triple}): {', '.join(known)}")
    cpu, needs = X86_LEVELS[isa]
    return Target(isa, triple, cpu, ",".join(f"+{feature}" for feature in needs))


def target_for(isa: str | None, host: Target | None = None) -> Target:
    """The host restricted to an instruction set of ISAS, or all of the host for None.

    `host` is what `host_target` says, where that is already known. Errors: KernelError.
    """
    host = host or host_target()
    if isa is None or isa == host.isa:
        return host
    if isa not in ISAS:
        raise KernelError(f"instruction set {isa!r} is unknown; known: {', '.join(ISAS)}")
    if isa not in host.levels:
        raise KernelError(
            f"this processor ({host.cpu}) does not have the instruction set {isa!r}; it has: {', '.join(host.levels)}"
        )
    return generic_target(isa, host.triple)
