"""INT4, symmetric: weight = scale * (code - 8), codes as nibbles (panels.py), a float16 scale per row and group.

Bits per weight at G = 32, 64, 128: 4.5, 4.25, 4.125. Holds GGUF's Q4_0 exactly: blocks of 32 inputs in 18 bytes, the
scale in f16, then 16 bytes whose low nibbles are inputs 0..15 and whose high ones 16..31.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgellm.kernels.panels import GROUPS
from edgellm.kernels.quants.quant import GroupedQuant, Parts, Transcode, grouped_record

if TYPE_CHECKING:
    from edgellm.kernels.cpu.matmul.pieces import Pieces


class Int4(GroupedQuant):
    """A scale per group."""

    unit, bits, zero_point = "int4", 4, 8
    record = grouped_record(has_minimums=False)

    @property
    def exact(self) -> Mapping[str, Transcode]:
        return {"Q4_0": self.from_q4_0} if self.group == 32 else {}

    @np.errstate(over="ignore", invalid="ignore")
    def encode(self, values: NDArray[np.float32]) -> Parts:
        """scale = the entry of largest magnitude / -8, so that it, whichever its sign, has the code 0"""
        groups = values.reshape(len(values), -1, self.group)
        peak = np.abs(groups).argmax(axis=2)[:, :, None]
        scales = np.take_along_axis(groups, peak, axis=2)[:, :, 0] / -8
        return self.pack(*self.rounded(groups, scales, 0, 15))

    def from_q4_0(self, data: NDArray[np.uint8]) -> Parts:
        blocks = data.reshape(len(data), -1, 18)
        scales = np.ascontiguousarray(blocks[:, :, :2]).view(np.float16)[:, :, 0]
        nibbles = blocks[:, :, 2:]
        return self.pack(np.concatenate((nibbles & 15, nibbles >> 4), axis=2).reshape(len(data), -1), scales)


QUANTS = tuple(map(Int4, GROUPS))


def make_pieces() -> "Pieces":
    from edgellm.kernels.cpu.matmul.dots import make_nibble_dots
    from edgellm.kernels.cpu.matmul.pieces import grouped_pieces, nibble_code

    dots = make_nibble_dots(Int4.zero_point)
    return grouped_pieces(Int4.record, block_bytes=512, make_dots=dots, code=nibble_code(Int4.zero_point))


def entry_points() -> dict[str, Callable[..., None]]:
    from edgellm.kernels.cpu.matmul.weights import weight_kernels

    return weight_kernels(Int4.unit, make_pieces())
