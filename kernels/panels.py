"""How the codes of a weight matrix lie: the one definition that converters write and kernels read.

A weight matrix has N output rows and C input columns. Rows come in PANELS of 32 (the last one padded), columns in
BLOCKS of 32, and a panel is read from its first byte to its last, so that decoding is one long stream. Four
consecutive inputs of a row stay together, because that is what a dot-product instruction (VNNI, NEON dotprod) takes;
the 16 rows of half a panel fill the lanes of one 64-byte register, or of several narrower ones.

Nibbles, one block of a panel, 512 bytes [2 half][4 j][16 row][4 i]:

    byte half*256 + j*64 + row*4 + i    low nibble   input     j*4 + i  of the block, row half*16 + row of the panel
                                        high nibble  input 16 + j*4 + i

    so that one 64-byte load gives, by `& 15` and `>> 4`, two vectors of 16 rows x 4 inputs.

Bytes, one block of a panel, 1024 bytes [2 half][8 j][16 row][4 i]:

    byte half*512 + j*64 + row*4 + i    input j*4 + i of the block

Codes of 5 and 6 bits: nibbles, and after them the u = 1 or 2 upper bits of each code. They lie in runs of 32/u inputs,
so that the upper bits of half a panel fill one register of 64 bytes, and its nibbles n = 4/u of them. A run of a panel,
640/u or 768/u bytes [2 half][n + 1][16 row][4 i]:

    nibbles    byte half*(n+1)*64 + k*64 + row*4 + i    low nibble   input       k*4 + i  of the run
                                                        high nibble  input (n + k)*4 + i
    upper      byte half*(n+1)*64 + n*64 + row*4 + i    from bit j*u  those of input j*4 + i

All codes are stored unsigned. What there is for every row and group of inputs lies as [panel][group][32 row].
"""

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

PANEL = 32  # rows
LANES = 16  # rows of half a panel
BLOCK = 32  # inputs
GROUPS = (32, 64, 128)
Item = TypeVar("Item", bound=np.generic)


def padded_rows(rows: int) -> int:
    return -(-rows // PANEL) * PANEL


def _padded(values: NDArray[Item], filling: int) -> NDArray[Item]:
    """[N][..] with rows added up to a whole panel."""
    missing = padded_rows(len(values)) - len(values)
    return np.concatenate((values, np.full((missing, *values.shape[1:]), filling, values.dtype)))


def pack_nibbles(codes: NDArray[np.uint8], filling: int) -> NDArray[np.uint8]:
    """Codes of 4 bits uint8 [N][C] in natural order -> [panels][blocks][512]; rows that pad hold `filling`."""
    padded = _padded(codes, filling)
    split = padded.reshape(-1, 2, LANES, codes.shape[1] // BLOCK, 2, 4, 4)  # [panel][half][row][block][nibble][j][i]
    low, high = (split[:, :, :, :, which].transpose(0, 3, 1, 4, 2, 5) for which in (0, 1))
    return np.ascontiguousarray(low | (high << 4)).reshape(len(split), codes.shape[1] // BLOCK, PANEL * BLOCK // 2)


def unpack_nibbles(packed: NDArray[np.uint8], rows: int) -> NDArray[np.uint8]:
    """The inverse of `pack_nibbles`: uint8 [N][C]."""
    panels, blocks, _ = packed.shape
    pairs = packed.reshape(panels, blocks, 2, 4, LANES, 4).transpose(0, 2, 4, 1, 3, 5)
    split = np.stack((pairs & 15, pairs >> 4), axis=4)
    return np.ascontiguousarray(split).reshape(panels * PANEL, blocks * BLOCK)[:rows]


def pack_bytes(codes: NDArray[np.uint8], filling: int) -> NDArray[np.uint8]:
    """Codes of 8 bits uint8 [N][C] in natural order -> [panels][blocks][1024]; rows that pad hold `filling`."""
    padded = _padded(codes, filling)
    split = padded.reshape(-1, 2, LANES, codes.shape[1] // BLOCK, 8, 4)  # [panel][half][row][block][j][i]
    shape = (len(split), codes.shape[1] // BLOCK, PANEL * BLOCK)
    return np.ascontiguousarray(split.transpose(0, 3, 1, 4, 2, 5)).reshape(shape)


def unpack_bytes(packed: NDArray[np.uint8], rows: int) -> NDArray[np.uint8]:
    """The inverse of `pack_bytes`: uint8 [N][C]."""
    panels, blocks, _ = packed.shape
    split = packed.reshape(panels, blocks, 2, 8, LANES, 4).transpose(0, 2, 4, 1, 3, 5)
    return np.ascontiguousarray(split).reshape(panels * PANEL, blocks * BLOCK)[:rows]


def pack_planes(codes: NDArray[np.uint8], upper: int) -> NDArray[np.uint8]:
    """Codes of 4 + `upper` bits uint8 [N][C] in natural order -> [panels][blocks][512 + 128 upper]; padded with 0."""
    columns = codes.shape[1]
    registers = 4 // upper
    split = _padded(codes, 0).reshape(-1, 2, LANES, columns * upper // BLOCK, 2, registers, 4)
    low, high = (split[:, :, :, :, which].transpose(0, 3, 1, 4, 2, 5) & 15 for which in (0, 1))
    groups = (split >> 4).reshape(*split.shape[:4], 2 * registers, 1, 4)  # [panel][half][row][run][j][1][i]
    shifts = (np.arange(2 * registers, dtype=np.uint8) * upper)[:, None, None]
    above = np.bitwise_or.reduce(groups << shifts, axis=4).transpose(0, 3, 1, 4, 2, 5)
    packed = np.concatenate((low | (high << 4), above), axis=3)  # [panel][run][half][register][row][i]
    return packed.reshape(len(split), columns // BLOCK, -1)


def unpack_planes(packed: NDArray[np.uint8], rows: int, upper: int) -> NDArray[np.uint8]:
    """The inverse of `pack_planes`: uint8 [N][C]."""
    panels, blocks, _ = packed.shape
    registers = 4 // upper
    split = packed.reshape(panels, blocks * upper, 2, registers + 1, LANES, 4)
    pairs = split[:, :, :, :registers]
    above = split[:, :, :, registers:]
    shifts = (np.arange(2 * registers, dtype=np.uint8) * upper)[:, None, None]
    codes = np.concatenate((pairs & 15, pairs >> 4), axis=3) | (above >> shifts & (1 << upper) - 1) << 4
    return np.ascontiguousarray(codes.transpose(0, 2, 4, 1, 3, 5)).reshape(panels * PANEL, blocks * BLOCK)[:rows]


def pack_per_row(values: NDArray[Item]) -> NDArray[Item]:
    """What there is for every row and group [N][groups] -> [panels][groups][32]; rows that pad hold 0."""
    padded = _padded(values, 0)
    return np.ascontiguousarray(padded.reshape(-1, PANEL, values.shape[1]).transpose(0, 2, 1))


def unpack_per_row(packed: NDArray[Item], rows: int) -> NDArray[Item]:
    """The inverse of `pack_per_row`: [N][groups]."""
    panels, groups, _ = packed.shape
    return np.ascontiguousarray(packed.transpose(0, 2, 1)).reshape(panels * PANEL, groups)[:rows]
