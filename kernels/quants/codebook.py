"""Codebooks of 16 entries: weight = scale * table[code], codes as nibbles (panels.py), a scale per row and group.

    iq4_nl    4.5 bits a weight     integers of 8 bits, f16 per 32 inputs; GGUF's IQ4_NL, exactly
    iq4_xs    4.3125                the same, f16 per 256 inputs times a step per 32 (two_level.py); GGUF's, exactly
    mxfp4     4.25                  twice the numbers of e2m1, e8m0 per 32 with a factor 1/2; GGUF's MXFP4, exactly
                                    (OCP Microscaling Formats 1.0)
    nf4       4.5                   16384 times NormalFloat, f32 absmax / 16384 per 64 (QLoRA, arXiv 2305.14314)

NormalFloat's numbers are rounded to 16384ths, so a weight is within 2^-15 of its group's largest of what bitsandbytes
makes of it; INT8 activations are 2^-8 from theirs. A division by 2^14 changes no absmax.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgellm.kernels.panels import BLOCK, PANEL, pack_nibbles, pack_per_row, padded_rows, unpack_nibbles, unpack_per_row
from edgellm.kernels.quants.quant import Parts, PartSpec, Quant, Transcode, grouped_record
from edgellm.kernels.quants.two_level import Q6K, TwoLevel, f16, products, two_levels

if TYPE_CHECKING:
    from edgellm.kernels.cpu.matmul.pieces import Pieces

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
NF4_ONE = 1 << 14
# fmt: off
IQ4_NL_TABLE = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
MXFP4_TABLE = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
NF4_TABLE = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)
# fmt: on


class ScaleKind(NamedTuple):
    """How scales are kept."""

    dtype: type[np.generic]
    floats: Callable[[NDArray[Any]], Floats]
    nearest: Callable[[Floats], NDArray[Any]]

    def room(self, groups: int) -> int:
        """Groups that a row has room for: of bytes an even number, so that a panel's are a multiple of 64 bytes."""
        return groups + groups % 2 if np.dtype(self.dtype).itemsize == 1 else groups


def e8m0_halves(exponents: Bytes) -> Floats:
    """2^(e - 128): e8m0 with the factor 1/2, whose first two numbers a float32 holds as subnormal ones."""
    wide = exponents.astype(np.uint32)
    return np.where(wide < 2, (wide + 1) << 21, (wide - 1) << 23).view(np.float32)


def e8m0_below(scales: Floats) -> Bytes:
    """The largest power of two that is not above; 255 is none, so that infinities end as the last."""
    exponents: Bytes = np.clip(np.frexp(scales)[1] + 127, 0, 254).astype(np.uint8)
    return exponents


F16 = ScaleKind(np.float16, lambda kept: kept.astype(np.float32), lambda scales: scales.astype(np.float16))
F32 = ScaleKind(np.float32, lambda kept: kept, lambda scales: scales)
E8M0 = ScaleKind(np.uint8, e8m0_halves, e8m0_below)


class Codebook(Quant):
    """A table and a kind of scale."""

    unit, bits = "codebook", 4
    record = grouped_record(has_minimums=False)
    table: ClassVar[tuple[int, ...]]
    kind: ClassVar[ScaleKind]
    tried: ClassVar[tuple[float, ...]]  # what `encode` multiplies a group's first scale with, to find the best

    @property
    def kernel(self) -> str:
        return self.name

    @property
    def bits_per_weight(self) -> float:
        return self.bits + 8 * np.dtype(self.kind.dtype).itemsize / self.group

    def parts(self, rows: int, columns: int) -> dict[str, PartSpec]:
        panels = padded_rows(rows) // PANEL
        scales = PartSpec(self.kind.dtype, (panels, self.kind.room(columns // self.group), PANEL))
        return {"codes": PartSpec(np.uint8, (panels, columns // BLOCK, PANEL * BLOCK // 2)), "scales": scales}

    def numbers(self) -> dict[str, int]:
        return {"group_shift": (self.group // BLOCK).bit_length() - 1}

    def pack(self, codes: Bytes, scales: NDArray[Any]) -> Parts:
        """Codes uint8 [N][C] and scales [N][C/G] in natural order -> parts."""
        groups = scales.shape[1]
        least = self.table.index(min(self.table, key=abs))
        padded = np.pad(scales, ((0, 0), (0, self.kind.room(groups) - groups)))
        return {"codes": pack_nibbles(codes, least), "scales": pack_per_row(padded)}

    def decode(self, parts: Mapping[str, NDArray[Any]], rows: int) -> Floats:
        values = np.array(self.table, np.float32)[unpack_nibbles(parts["codes"], rows)]
        scales = self.kind.floats(unpack_per_row(parts["scales"], rows)[:, : values.shape[1] // self.group])
        decoded: Floats = values * np.repeat(scales, self.group, axis=1)
        return decoded

    def first_scales(self, groups: Floats) -> Floats:
        """Of groups [N][C/G][G]: the largest magnitude is the table's last entry."""
        scales: Floats = (np.abs(groups).max(axis=2) / np.float32(self.table[-1])).astype(np.float32)
        return scales

    @np.errstate(over="ignore", invalid="ignore")
    def encode(self, values: Floats) -> Parts:
        groups = values.reshape(len(values), -1, self.group)
        codes, scales = best(groups, self.table, self.kind, self.first_scales(groups), self.tried)
        return self.pack(codes.reshape(len(values), -1), scales)


def best(
    groups: Floats, table: tuple[int, ...], kind: ScaleKind, first: Floats, tried: tuple[float, ...]
) -> tuple[Bytes, NDArray[Any]]:
    """Codes of groups [N][groups][G] and scales, of first * each of those tried the one of least squared error."""
    least = np.full(first.shape, np.inf, np.float32)
    codes = np.zeros(groups.shape, np.uint8)
    kept = kind.nearest(first)
    for factor in tried:
        scales = kind.nearest(first * np.float32(factor))
        steps = kind.floats(scales)
        found = nearest(groups, table, steps)
        error = np.square(np.array(table, np.float32)[found] * steps[:, :, None] - groups).sum(axis=2)
        better = error < least
        least = np.where(better, error, least)
        kept = np.where(better, scales, kept)
        codes = np.where(better[:, :, None], found, codes)
    return codes, kept


def nearest(groups: Floats, table: tuple[int, ...], scales: Floats) -> Bytes:
    """The codes of the entries nearest to groups [N][groups][G] by their scales [N][groups]."""
    steps = scales[:, :, None]
    order = np.argsort(table, kind="stable")
    values = np.divide(groups, steps, out=np.zeros_like(groups), where=steps != 0)
    entries = np.array(table, np.float32)[order]
    codes: Bytes = order.astype(np.uint8)[np.searchsorted((entries[1:] + entries[:-1]) / 2, values)]
    return codes


def peak_scales(groups: Floats) -> Floats:
    """For IQ4_NL's table: the entry of largest magnitude, whichever its sign, is -127."""
    peak = np.abs(groups).argmax(axis=2)[:, :, None]
    scales: Floats = np.take_along_axis(groups, peak, axis=2)[:, :, 0] / np.float32(-127)
    return scales


def natural(packed: Bytes) -> Bytes:
    """GGUF's codes of 32 inputs in 16 bytes [N][blocks][16], 0..15 in the low nibbles -> [N][C]."""
    codes: Bytes = np.concatenate((packed & 15, packed >> 4), axis=2)
    return codes.reshape(len(packed), -1)


class IQ4NL(Codebook):
    """Nonlinear INT4."""

    name = "iq4_nl"
    table = IQ4_NL_TABLE
    kind = F16
    tried = tuple(0.80 + 0.05 * i for i in range(7))

    @property
    def exact(self) -> Mapping[str, Transcode]:
        return {"IQ4_NL": self.from_gguf}

    def first_scales(self, groups: Floats) -> Floats:
        return peak_scales(groups)

    def from_gguf(self, data: Bytes) -> Parts:
        blocks = data.reshape(len(data), -1, 18)
        return self.pack(natural(blocks[:, :, 2:]), f16(blocks[:, :, :2]))


class IQ4XS(TwoLevel):
    """The same integers, with scales as q6_k has them: a step in -32..31 for 32 inputs."""

    unit = "codebook"
    bits = 4
    inputs = 32
    zero_point = 0
    has_minimums = False
    otherwise = IQ4NL(BLOCK)
    name = "iq4_xs"
    table = IQ4_NL_TABLE
    record = Q6K.record

    def integers(self, codes: Bytes) -> Floats:
        return np.array(self.table, np.float32)[codes]

    @np.errstate(over="ignore", invalid="ignore")
    def encode(self, values: Floats) -> Parts:
        groups = values.reshape(len(values), -1, self.inputs)
        _, wanted = best(groups, self.table, F32, peak_scales(groups), IQ4NL.tried)
        scales, steps = two_levels(wanted, 31, self.inputs)
        codes = nearest(groups, self.table, products(scales, steps))
        return self.pack(codes.reshape(len(values), -1), scales=scales, steps=steps)

    def from_gguf(self, data: Bytes) -> Parts:
        """Blocks of 256 inputs: d in f16, 8 pairs of upper bits, 8 nibbles and 128 bytes of codes; steps are - 32."""
        blocks = data.reshape(len(data), -1, 136)
        pairs = blocks[:, :, 2:4, None] >> np.arange(0, 8, 2, dtype=np.uint8) & np.uint8(3)
        nibbles = blocks[:, :, 4:8, None] >> np.array([0, 4], np.uint8) & np.uint8(15)
        steps = (nibbles.reshape(len(data), -1) | pairs.reshape(len(data), -1) << np.uint8(4)).astype(np.int8)
        codes = natural(blocks[:, :, 8:].reshape(len(data), -1, 16))
        return self.pack(codes, scales=f16(blocks[:, :, :2]), steps=steps - np.int8(32))


class MXFP4(Codebook):
    """Numbers of 4 bits with a shared exponent."""

    name = "mxfp4"
    table = MXFP4_TABLE
    kind = E8M0
    tried = (1.0, 2.0)

    @property
    def exact(self) -> Mapping[str, Transcode]:
        return {"MXFP4": self.from_gguf}

    def first_scales(self, groups: Floats) -> Floats:
        """The largest magnitude is in 4..8 before e2m1 cuts it to 6, as the specification wants it."""
        scales: Floats = (np.abs(groups).max(axis=2) / np.float32(8)).astype(np.float32)
        return scales

    def from_gguf(self, data: Bytes) -> Parts:
        blocks = data.reshape(len(data), -1, 17)
        return self.pack(natural(blocks[:, :, 1:]), blocks[:, :, 0])


class NF4(Codebook):
    """NormalFloat: quantiles of a normal distribution."""

    name = "nf4"
    table = tuple(round(value * NF4_ONE) for value in NF4_TABLE)
    kind = F32
    tried = (1.0,)

    def fitting(self, columns: int) -> Quant:
        return IQ4NL(BLOCK) if columns % self.group else self


QUANTS = (IQ4NL(32), IQ4XS(256), MXFP4(32), NF4(64))


def make_pieces(quant: Codebook | IQ4XS) -> "Pieces":
    from edgellm.kernels.cpu.matmul.codebooks import codebook_code, make_codebook_dots
    from edgellm.kernels.cpu.matmul.pieces import grouped_pieces, two_level_pieces
    from edgellm.kernels.simd.arithmetic import choose_i32, f32_from_lane_bits, less, shift_left, splat_i32
    from edgellm.kernels.simd.kernel import inlined
    from edgellm.kernels.simd.memory import load_f16x16, load_f32x16, load_u8x16

    @inlined
    def load_e8m0(where: int) -> Any:
        """`e8m0_halves`"""
        e = load_u8x16(where)
        small = shift_left(e + splat_i32(1), 21)
        normal = shift_left(e - splat_i32(1), 23)
        return f32_from_lane_bits(choose_i32(less(e, splat_i32(2)), small, normal))

    size = PANEL * BLOCK // 2
    dots = make_codebook_dots(quant.table)
    code = codebook_code(quant.table)
    if isinstance(quant, IQ4XS):
        return two_level_pieces(quant.record, block_bytes=size, make_dots=dots, code=code, runs=1)
    load, each = {F16: (load_f16x16, 2), F32: (load_f32x16, 4), E8M0: (load_e8m0, 1)}[quant.kind]
    return grouped_pieces(quant.record, block_bytes=size, make_dots=dots, code=code, load=load, size=each)


def entry_points() -> dict[str, Callable[..., None]]:
    from edgellm.kernels.cpu.matmul.weights import weight_kernels

    return {name: made for quant in QUANTS for name, made in weight_kernels(quant.kernel, make_pieces(quant)).items()}
