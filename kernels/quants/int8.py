"""INT8: weight = scale * (code - 128), codes as bytes (panels.py), a float16 scale per row and group.

Bits per weight at G = 32, 64, 128: 8.5, 8.25, 8.125. Holds GGUF's Q8_0 exactly: blocks of 32 inputs in 34 bytes, the
scale in f16, then 32 signed codes.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgellm.kernels.panels import GROUPS
from edgellm.kernels.quants.quant import GroupedQuant, Parts, Transcode, grouped_record

if TYPE_CHECKING:
    from edgellm.kernels.cpu.matmul.pieces import Pieces


class Int8(GroupedQuant):
    """A scale per group."""

    unit, bits, zero_point = "int8", 8, 128
    record = grouped_record(has_minimums=False)

    @property
    def exact(self) -> Mapping[str, Transcode]:
        return {"Q8_0": self.from_q8_0} if self.group == 32 else {}

    @np.errstate(over="ignore", invalid="ignore")
    def encode(self, values: NDArray[np.float32]) -> Parts:
        """scale = largest magnitude / 127"""
        groups = values.reshape(len(values), -1, self.group)
        return self.pack(*self.rounded(groups, np.abs(groups).max(axis=2) / 127, 1, 255))

    def from_q8_0(self, data: NDArray[np.uint8]) -> Parts:
        blocks = data.reshape(len(data), -1, 34)
        scales = np.ascontiguousarray(blocks[:, :, :2]).view(np.float16)[:, :, 0]
        return self.pack((blocks[:, :, 2:] ^ np.uint8(0x80)).reshape(len(data), -1), scales)


QUANTS = tuple(map(Int8, GROUPS))


def make_pieces() -> "Pieces":
    from edgellm.kernels.cpu.matmul.dots import make_byte_dots
    from edgellm.kernels.cpu.matmul.pieces import byte_code, grouped_pieces

    return grouped_pieces(Int8.record, block_bytes=1024, make_dots=make_byte_dots, code=byte_code)


def entry_points() -> dict[str, Callable[..., None]]:
    from edgellm.kernels.cpu.matmul.weights import weight_kernels

    return weight_kernels(Int8.unit, make_pieces())
