"""Q4_K, Q5_K and Q6_K of GGUF, bit for bit: scales of two levels, a float16 for 256 inputs times a small integer.

    q4_k, q5_k    weight = d * step * code - dmin * min_step    code in 0..15 or 0..31, steps in 0..63 for 32 inputs
    q6_k          weight = d * step * (code - 32)               code in 0..63, a step in -128..127 for 16 inputs

Parts: codes as panels.py draws them, of 4, 5 or 6 bits; scales (d) and mins (dmin) float16 [panel][C/256][32 row];
steps and min_steps int8 [panel][C/32 or C/16][32 row]. 4.625, 5.625 and 6.5625 bits per weight: GGUF's own 4.5 and 5.5
keep steps of 6 bits, we in bytes. Products d * step * code have at most 24 bits, so a float32 holds them exactly.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from edgellm.kernels.ops import WEIGHT_HEAD, Record
from edgellm.kernels.panels import (
    BLOCK,
    PANEL,
    pack_nibbles,
    pack_per_row,
    pack_planes,
    padded_rows,
    unpack_nibbles,
    unpack_per_row,
    unpack_planes,
)
from edgellm.kernels.quants.int4_asym import Int4Asym
from edgellm.kernels.quants.int8 import Int8
from edgellm.kernels.quants.quant import Parts, PartSpec, Quant, Transcode

if TYPE_CHECKING:
    from edgellm.kernels.cpu.matmul.pieces import Pieces

SUPER = 256  # inputs that share d and dmin
NIBBLES = np.array([[0], [4]], np.uint8)
FIFTEEN = np.uint8(15)
Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


class TwoLevel(Quant):
    """What the three have in common."""

    unit = "two_level"
    inputs: ClassVar[int]  # that share a step
    zero_point: ClassVar[int]  # what a stored code stands for is code - zero_point
    has_minimums: ClassVar[bool]
    otherwise: ClassVar[Quant]  # where 256 does not divide the columns: as many bits or more

    @property
    def name(self) -> str:
        return f"q{self.bits}_k"

    @property
    def kernel(self) -> str:
        return self.name

    @property
    def bits_per_weight(self) -> float:
        return self.bits + (8 / self.inputs + 16 / SUPER) * (2 if self.has_minimums else 1)

    def parts(self, rows: int, columns: int) -> dict[str, PartSpec]:
        panels = padded_rows(rows) // PANEL
        codes = PartSpec(np.uint8, (panels, columns // BLOCK, PANEL * BLOCK * self.bits // 8))
        scales = PartSpec(np.float16, (panels, columns // SUPER, PANEL))
        steps = PartSpec(np.int8, (panels, columns // self.inputs, PANEL))
        mins = {"mins": scales, "min_steps": steps} if self.has_minimums else {}
        return {"codes": codes, "scales": scales, "steps": steps, **mins}

    @property
    def exact(self) -> Mapping[str, Transcode]:
        return {self.name.upper(): self.from_gguf}

    def fitting(self, columns: int) -> Quant:
        return self.otherwise.fitting(columns) if columns % SUPER else self

    def integers(self, codes: Bytes) -> Floats:
        """What codes [N][C] stand for and the scales multiply."""
        return codes.astype(np.float32) - np.float32(self.zero_point)

    @abstractmethod
    def from_gguf(self, data: Bytes) -> Parts:
        """Rows of GGUF's type of that name, uint8 [N][bytes]."""

    def pack(self, codes: Bytes, **scales: NDArray[Any]) -> Parts:
        """Codes uint8 [N][C] and the other parts [N][groups] in natural order -> parts."""
        packed = pack_nibbles(codes, 0) if self.bits == 4 else pack_planes(codes, self.bits - 4)
        return {"codes": packed, **{name: pack_per_row(values) for name, values in scales.items()}}

    def decode(self, parts: Mapping[str, NDArray[Any]], rows: int) -> Floats:
        packed = parts["codes"]
        codes = unpack_nibbles(packed, rows) if self.bits == 4 else unpack_planes(packed, rows, self.bits - 4)
        natural = {name: unpack_per_row(part, rows) for name, part in parts.items() if name != "codes"}
        values = (
            self.integers(codes).reshape(rows, -1, self.inputs)
            * products(natural["scales"], natural["steps"])[:, :, None]
        )
        if self.has_minimums:
            values -= products(natural["mins"], natural["min_steps"])[:, :, None]
        return values.reshape(rows, -1)


class WithMinimums(TwoLevel):
    """Q4_K and Q5_K."""

    inputs, zero_point, has_minimums = 32, 0, True

    @np.errstate(over="ignore", invalid="ignore")
    def encode(self, values: Floats) -> Parts:
        """From the least entry of a group, or 0, to the greatest; the minimum is rounded before the scale is made."""
        groups = values.reshape(len(values), -1, self.inputs)
        top = (1 << self.bits) - 1
        mins, min_steps = two_levels(np.maximum(-groups.min(axis=2), 0), 63, self.inputs)
        raised = groups + products(mins, min_steps)[:, :, None]
        scales, steps = two_levels(np.maximum(raised.max(axis=2), 0) / np.float32(top), 63, self.inputs)
        codes = _codes(raised, products(scales, steps), 0, top)
        return self.pack(codes, scales=scales, steps=steps, mins=mins, min_steps=min_steps)

    def from_gguf(self, data: Bytes) -> Parts:
        """Blocks of 256 inputs: d and dmin in f16, 12 bytes of steps, for Q5_K 32 of upper bits, 128 of nibbles.

        Bit r of an upper byte belongs to input r*32 + byte; a run of 32 bytes of nibbles has two groups, the first low.
        """
        blocks = data.reshape(len(data), -1, 16 + SUPER * self.bits // 8)
        steps, min_steps = _six_bits(blocks[:, :, 4:16])
        nibbles = blocks[:, :, -128:].reshape(*blocks.shape[:2], 4, 1, 32)
        codes: Bytes = nibbles >> NIBBLES & FIFTEEN
        if self.bits == 5:
            bits = blocks[:, :, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & np.uint8(1)
            codes = codes | bits.reshape(codes.shape) << np.uint8(4)
        scales, mins = (f16(blocks[:, :, at : at + 2]) for at in (0, 2))
        return self.pack(codes.reshape(len(data), -1), scales=scales, steps=steps, mins=mins, min_steps=min_steps)


class Q4K(WithMinimums):
    """4 bits."""

    bits = 4
    otherwise = Int4Asym(BLOCK)
    record = Record(*WEIGHT_HEAD, "codes", "scales", "steps", "mins", "min_steps")


class Q5K(WithMinimums):
    """5 bits."""

    bits = 5
    otherwise = Int8(BLOCK)
    record = Q4K.record


class Q6K(TwoLevel):
    """6 bits."""

    bits = 6
    inputs = 16
    zero_point = 32
    has_minimums = False
    otherwise = Int8(BLOCK)
    record = Record(*WEIGHT_HEAD, "codes", "scales", "steps")

    @np.errstate(over="ignore", invalid="ignore")
    def encode(self, values: Floats) -> Parts:
        """The entry of largest magnitude of a group, whichever its sign, has the code 0."""
        groups = values.reshape(len(values), -1, self.inputs)
        peak = np.abs(groups).argmax(axis=2)[:, :, None]
        scales, steps = two_levels(
            np.take_along_axis(groups, peak, axis=2)[:, :, 0] / np.float32(-32), 127, self.inputs
        )
        return self.pack(_codes(groups, products(scales, steps), 32, 63), scales=scales, steps=steps)

    def from_gguf(self, data: Bytes) -> Parts:
        """Blocks of 256 inputs: 128 bytes of nibbles, 64 of pairs of upper bits, 16 signed steps, d in f16.

        Each half of a block has 64 bytes of nibbles, inputs 0..63 low and 64..127 high, and 32 of pairs: pair r of a
        byte belongs to input r*32 + byte.
        """
        blocks = data.reshape(len(data), -1, 210)
        nibbles = blocks[:, :, :128].reshape(*blocks.shape[:2], 2, 1, 64) >> NIBBLES & FIFTEEN
        pairs = blocks[:, :, 128:192].reshape(*blocks.shape[:2], 2, 1, 32) >> np.array([[0], [2], [4], [6]], np.uint8)
        codes: Bytes = nibbles | (pairs & np.uint8(3)).reshape(nibbles.shape) << np.uint8(4)
        steps = np.ascontiguousarray(blocks[:, :, 192:208]).view(np.int8).reshape(len(data), -1)
        return self.pack(codes.reshape(len(data), -1), scales=f16(blocks[:, :, 208:]), steps=steps)


def f16(data: Bytes) -> NDArray[np.float16]:
    return np.ascontiguousarray(data).view(np.float16)[:, :, 0]


def _six_bits(packed: Bytes) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
    """12 bytes [N][blocks][12] -> steps and min_steps [N][blocks * 8].

    Bytes 0..3 have steps 0..3 in their low 6 bits, bytes 4..7 min_steps 0..3; of steps and min_steps 4..7 the low 4
    bits are the nibbles of bytes 8..11, and the upper 2 those of bytes 0..3 and of 4..7.
    """
    first, second, third = (packed[:, :, at : at + 4] for at in (0, 4, 8))
    steps = np.concatenate((first & 63, third & 15 | first >> 6 << 4), axis=2)
    min_steps = np.concatenate((second & 63, third >> 4 | second >> 6 << 4), axis=2)
    return steps.reshape(len(packed), -1).view(np.int8), min_steps.reshape(len(packed), -1).view(np.int8)


def products(scales: NDArray[np.float16], steps: NDArray[np.int8]) -> Floats:
    """Scales [N][C/256] times steps [N][groups], float32 [N][groups], exactly."""
    repeated = np.repeat(scales.astype(np.float32), steps.shape[1] // scales.shape[1], axis=1)
    products: Floats = repeated * steps
    return products


def two_levels(wanted: Floats, top: int, inputs: int) -> tuple[NDArray[np.float16], NDArray[np.int8]]:
    """Scales, and steps up to `top` in magnitude, whose products are near what is wanted for groups of `inputs`."""
    blocks = wanted.reshape(len(wanted), -1, SUPER // inputs)
    scales = (np.abs(blocks).max(axis=2) / top).astype(np.float16)
    kept = scales.astype(np.float32)[:, :, None]
    steps = np.divide(blocks, kept, out=np.zeros_like(blocks), where=kept != 0)
    return scales, np.clip(np.rint(steps), -top, top).astype(np.int8).reshape(wanted.shape)


def _codes(groups: Floats, scales: Floats, zero_point: int, highest: int) -> Bytes:
    """Groups [N][groups][inputs] in steps of their scales [N][groups] -> codes [N][C] in 0..highest."""
    steps = scales[:, :, None]
    codes = np.divide(groups, steps, out=np.zeros_like(groups), where=steps != 0)
    rounded: Bytes = np.clip(np.rint(codes) + zero_point, 0, highest).astype(np.uint8)
    return rounded.reshape(len(groups), -1)


QUANTS = (Q4K(SUPER), Q5K(SUPER), Q6K(SUPER))


def make_pieces(quant: TwoLevel) -> "Pieces":
    from edgellm.kernels.cpu.matmul.dots import make_nibble_dots
    from edgellm.kernels.cpu.matmul.pieces import nibble_code, two_level_pieces
    from edgellm.kernels.cpu.matmul.planes import make_plane_dots, plane_code

    upper = quant.bits - 4
    zero_point = quant.zero_point
    return two_level_pieces(
        quant.record,
        block_bytes=PANEL * BLOCK * quant.bits // 8,
        make_dots=make_plane_dots(upper, zero_point) if upper else make_nibble_dots(zero_point),
        code=plane_code(upper, zero_point) if upper else nibble_code(zero_point),
        runs=BLOCK // quant.inputs,
    )


def entry_points() -> dict[str, Callable[..., None]]:
    from edgellm.kernels.cpu.matmul.weights import weight_kernels

    return {name: made for quant in QUANTS for name, made in weight_kernels(quant.kernel, make_pieces(quant)).items()}
