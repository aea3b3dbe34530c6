"""INT4 with minimums: weight = scale * code + min, codes as nibbles (panels.py), float16 scale and minimum per group.

Bits per weight at G = 32, 64, 128: 5.0, 4.5, 4.25. Holds GGUF's Q4_1 exactly: blocks of 32 inputs in 20 bytes, scale
and minimum in f16, then 16 bytes whose low nibbles are inputs 0..15 and whose high ones 16..31.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgellm.kernels.panels import GROUPS
from edgellm.kernels.quants.quant import GroupedQuant, Parts, Transcode, grouped_record

if TYPE_CHECKING:
    from edgellm.kernels.cpu.matmul.pieces import Pieces


class Int4Asym(GroupedQuant):
    """A scale and a minimum per group."""

    unit = "int4_asym"
    bits = 4
    zero_point = 0
    has_minimums = True
    record = grouped_record(has_minimums=True)

    @property
    def exact(self) -> Mapping[str, Transcode]:
        return {"Q4_1": self.from_q4_1} if self.group == 32 else {}

    @np.errstate(over="ignore", invalid="ignore")
    def encode(self, values: NDArray[np.float32]) -> Parts:
        """From the least entry of a group in 15 steps to the greatest"""
        groups = values.reshape(len(values), -1, self.group)
        least = groups.min(axis=2)
        mins = least.astype(np.float16)
        scales = (groups.max(axis=2) - least) / 15
        codes, kept = self.rounded(groups - mins.astype(np.float32)[:, :, None], scales, 0, 15)
        return self.pack(codes, kept, mins)

    def from_q4_1(self, data: NDArray[np.uint8]) -> Parts:
        blocks = data.reshape(len(data), -1, 20)
        scales, mins = (np.ascontiguousarray(blocks[:, :, at : at + 2]).view(np.float16)[:, :, 0] for at in (0, 2))
        nibbles = blocks[:, :, 4:]
        return self.pack(np.concatenate((nibbles & 15, nibbles >> 4), axis=2).reshape(len(data), -1), scales, mins)


QUANTS = tuple(map(Int4Asym, GROUPS))


def make_pieces() -> "Pieces":
    from edgellm.kernels.cpu.matmul.dots import make_nibble_dots
    from edgellm.kernels.cpu.matmul.pieces import grouped_pieces, nibble_code

    dots = make_nibble_dots(Int4Asym.zero_point)
    return grouped_pieces(Int4Asym.record, block_bytes=512, make_dots=dots, code=nibble_code(Int4Asym.zero_point))


def entry_points() -> dict[str, Callable[..., None]]:
    from edgellm.kernels.cpu.matmul.weights import weight_kernels

    return weight_kernels(Int4Asym.unit, make_pieces())
