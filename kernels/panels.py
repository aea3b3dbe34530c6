"""How weights lie in memory: the one definition that converters write and kernels read.

A weight matrix has N output rows and C input columns. Rows come in PANELS of 32 (the last one padded), columns in
BLOCKS of 32, and a panel is read from its first byte to its last, so that decoding is one long stream. Four
consecutive inputs of a row stay together, because that is what a dot-product instruction (VNNI, NEON dotprod) takes;
the 16 rows of half a panel fill the lanes of one 64-byte register, or of several narrower ones.

INT4, one block of a panel, 512 bytes [2 half][4 j][16 row][4 i]:

    byte half*256 + j*64 + row*4 + i    low nibble   input     j*4 + i  of the block, row half*16 + row of the panel
                                        high nibble  input 16 + j*4 + i

    so that one 64-byte load gives, by `& 15` and `>> 4`, two vectors of 16 rows x 4 inputs.

INT8, one block of a panel, 1024 bytes [2 half][8 j][16 row][4 i]:

    byte half*512 + j*64 + row*4 + i    code + 128 (unsigned), input j*4 + i of the block

Scales and minimums are f16, one per row and group of G inputs (G = 32, 64 or 128): [panel][C/G][32 row].

    layout          weight =             bits per weight at G = 32, 64, 128     holds exactly
    int4            scale * (code - 8)   4.5    4.25   4.125                    GGUF Q4_0
    int4-asym       scale * code + min   5.0    4.5    4.25                     GGUF Q4_1
    int8            scale * code         8.5    8.25   8.125                    GGUF Q8_0

All codes are stored unsigned; a kernel subtracts zero_point * sum(activations) once per block instead.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PANEL = 32  # rows
LANES = 16  # rows of half a panel
BLOCK = 32  # inputs
GROUPS = (32, 64, 128)


@dataclass(frozen=True)
class Layout:
    """A quantized layout. Names read `int4-g32`, `int4-asym-g64`, `int8-g128`."""

    bits: int  # 4 or 8
    asymmetric: bool
    group: int  # G, inputs that share a scale

    def __post_init__(self) -> None:
        assert (self.bits, self.asymmetric) in ((4, False), (4, True), (8, False)), self
        assert self.group in GROUPS, self

    @property
    def name(self) -> str:
        return f"int{self.bits}{'-asym' if self.asymmetric else ''}-g{self.group}"

    @property
    def zero_point(self) -> int:
        """What a stored code stands for is code - zero_point."""
        return 128 if self.bits == 8 else 0 if self.asymmetric else 8

    @property
    def bits_per_weight(self) -> float:
        return self.bits + (32 if self.asymmetric else 16) / self.group

    def codes_shape(self, rows: int, columns: int) -> tuple[int, int, int]:
        """Bytes of the codes, uint8 [panels][blocks][block bytes]."""
        return (padded_rows(rows) // PANEL, columns // BLOCK, PANEL * BLOCK * self.bits // 8)

    def scales_shape(self, rows: int, columns: int) -> tuple[int, int, int]:
        """Scales, and minimums where the layout has them, float16 [panels][C/G][32]."""
        return (padded_rows(rows) // PANEL, columns // self.group, PANEL)


LAYOUTS = {
    layout.name: layout
    for layout in (Layout(bits, asym, g) for bits, asym in ((4, False), (4, True), (8, False)) for g in GROUPS)
}


def padded_rows(rows: int) -> int:
    return -(-rows // PANEL) * PANEL


def pack_codes(layout: Layout, codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Unsigned codes uint8 [N, C] in natural order -> the layout's bytes; padded rows hold the zero point."""
    rows, columns = codes.shape
    padded = np.full((padded_rows(rows), columns), layout.zero_point, np.uint8)
    padded[:rows] = codes
    shape = layout.codes_shape(rows, columns)
    if layout.bits == 8:
        split = padded.reshape(shape[0], 2, LANES, shape[1], 8, 4)  # [panel][half][row][block][j][i]
        return np.ascontiguousarray(split.transpose(0, 3, 1, 4, 2, 5)).reshape(shape)
    nibbles = padded.reshape(shape[0], 2, LANES, shape[1], 2, 4, 4)  # [panel][half][row][block][nibble][j][i]
    low, high = (nibbles[:, :, :, :, which].transpose(0, 3, 1, 4, 2, 5) for which in (0, 1))
    return np.ascontiguousarray(low | (high << 4)).reshape(shape)


def unpack_codes(layout: Layout, packed: NDArray[np.uint8], rows: int) -> NDArray[np.uint8]:
    """The inverse of `pack_codes`: uint8 [N, C]."""
    panels, blocks, _ = packed.shape
    if layout.bits == 8:
        split = packed.reshape(panels, blocks, 2, 8, LANES, 4).transpose(0, 2, 4, 1, 3, 5)
    else:
        pairs = packed.reshape(panels, blocks, 2, 4, LANES, 4).transpose(0, 2, 4, 1, 3, 5)
        split = np.stack((pairs & 15, pairs >> 4), axis=4)
    return np.ascontiguousarray(split).reshape(panels * PANEL, blocks * BLOCK)[:rows]


def pack_scales(scales: NDArray[np.float16]) -> NDArray[np.float16]:
    """Scales or minimums float16 [N, C/G] -> [panels][C/G][32]; padded rows hold 0."""
    rows, groups = scales.shape
    padded = np.zeros((padded_rows(rows), groups), np.float16)
    padded[:rows] = scales
    return np.ascontiguousarray(padded.reshape(-1, PANEL, groups).transpose(0, 2, 1))


def unpack_scales(packed: NDArray[np.float16], rows: int) -> NDArray[np.float16]:
    """The inverse of `pack_scales`: float16 [N, C/G]."""
    panels, groups, _ = packed.shape
    return np.ascontiguousarray(packed.transpose(0, 2, 1)).reshape(panels * PANEL, groups)[:rows]


def dequantize(
    layout: Layout,
    codes: NDArray[np.uint8],
    scales: NDArray[np.float16],
    mins: NDArray[np.float16] | None,
    rows: int,
) -> NDArray[np.float32]:
    """The weights that packed codes, scales and minimums stand for, float32 [N, C]."""
    values = unpack_codes(layout, codes, rows).astype(np.float32) - np.float32(layout.zero_point)
    result = values * np.repeat(unpack_scales(scales, rows).astype(np.float32), layout.group, axis=1)
    if mins is not None:
        result += np.repeat(unpack_scales(mins, rows).astype(np.float32), layout.group, axis=1)
    return result
