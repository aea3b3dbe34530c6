"""Rows of a GGUF tensor -> codes, scales and minimums of one of our layouts.

Q8_0, Q4_0 and Q4_1 are regrouped, not rounded: their codes and scales are ours bit for bit. ggml's blocks of 32 inputs:

    Q8_0   34 bytes   scale f16, 32 codes i8                                        -> int8-g32        code + 128
    Q4_0   18 bytes   scale f16, 16 bytes: low nibbles inputs 0..15, high 16..31    -> int4-g32        code
    Q4_1   20 bytes   scale f16, minimum f16, 16 bytes likewise                     -> int4-asym-g32   code

Everything else becomes float32 and is rounded to the nearest code of the layout asked for.
"""

from dataclasses import dataclass

import gguf.quants
import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

from edgellm.errors import UnsupportedModelError
from edgellm.kernels.layouts import LAYOUTS, Layout

EXACT = {
    GGMLQuantizationType.Q8_0: LAYOUTS["int8-g32"],
    GGMLQuantizationType.Q4_0: LAYOUTS["int4-g32"],
    GGMLQuantizationType.Q4_1: LAYOUTS["int4-asym-g32"],
}


@dataclass(frozen=True)
class Codes:
    """A quantized matrix in natural order: what `layouts.pack_codes` and `layouts.pack_scales` take."""

    codes: NDArray[np.uint8]  # [N, C] unsigned
    scales: NDArray[np.float16]  # [N, C/G]
    mins: NDArray[np.float16] | None  # [N, C/G] if the layout is asymmetric

    def is_finite(self) -> bool:
        return bool(np.isfinite(self.scales).all() and (self.mins is None or np.isfinite(self.mins).all()))


def to_float32(kind: GGMLQuantizationType, data: NDArray[np.uint8], rows: int) -> NDArray[np.float32]:
    """What a GGUF tensor's bytes stand for, float32 [rows, C]; UnsupportedModelError for a type nobody can read."""
    try:
        with np.errstate(all="ignore"):  # damaged scales give infinities and NaN, which the caller refuses by name
            values: NDArray[np.float32] = gguf.quants.dequantize(data.reshape(rows, -1), kind)
    except NotImplementedError as error:
        raise UnsupportedModelError(f"tensors of the type {kind.name} cannot be read; get another file") from error
    return values


def transcode(kind: GGMLQuantizationType, data: NDArray[np.uint8]) -> Codes:
    """Regroup rows of Q8_0, Q4_0 or Q4_1 blocks, uint8 [N, bytes], bit for bit."""
    rows = len(data)
    blocks = data.reshape(rows, -1, GGML_QUANT_SIZES[kind][1])  # [row][block][bytes]
    scales = np.ascontiguousarray(blocks[:, :, :2]).view(np.float16)[:, :, 0]
    if kind == GGMLQuantizationType.Q8_0:
        return Codes((blocks[:, :, 2:] ^ np.uint8(0x80)).reshape(rows, -1), scales, None)
    mins, nibbles = None, blocks[:, :, 2:]
    if kind == GGMLQuantizationType.Q4_1:
        mins, nibbles = np.ascontiguousarray(blocks[:, :, 2:4]).view(np.float16)[:, :, 0], blocks[:, :, 4:]
    return Codes(np.concatenate((nibbles & 15, nibbles >> 4), axis=2).reshape(rows, -1), scales, mins)


@np.errstate(over="ignore", invalid="ignore")
def quantize(values: NDArray[np.float32], layout: Layout) -> Codes:
    """Round float32 [N, C] to a layout; the group must divide C. Weights too large for f16 give infinite scales.

    int8        scale = largest magnitude / 127
    int4        scale = the entry of largest magnitude / -8, so that it, whichever its sign, has the code 0
    int4-asym   from the least entry in 15 steps to the greatest
    """
    groups = values.reshape(values.shape[0], -1, layout.group)
    mins = None
    if layout.asymmetric:
        least = groups.min(axis=2)
        mins = least.astype(np.float16)
        exact = (groups.max(axis=2) - least) / 15
        groups = groups - mins.astype(np.float32)[:, :, None]
    elif layout.bits == 8:
        exact = np.abs(groups).max(axis=2) / 127
    else:
        peak = np.abs(groups).argmax(axis=2)[:, :, None]
        exact = np.take_along_axis(groups, peak, axis=2)[:, :, 0] / -8
    scales = exact.astype(np.float16)
    steps = scales.astype(np.float32)[:, :, None]
    codes = np.divide(groups, steps, out=np.zeros_like(groups), where=steps != 0)
    codes = np.rint(codes, out=codes) + layout.zero_point
    codes = np.clip(codes, 1, 255) if layout.bits == 8 else np.clip(codes, 0, 15)
    return Codes(codes.astype(np.uint8).reshape(values.shape), scales, mins)


def fitting(layout: Layout, columns: int) -> Layout:
    """The layout, or the one of the largest smaller group that divides the columns, which are a multiple of 32."""
    group = layout.group
    while columns % group:
        group //= 2
    return Layout(layout.bits, layout.asymmetric, group)
