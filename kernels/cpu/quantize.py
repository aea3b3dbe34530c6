"""Activations: 32 floats of a row to INT8 codes, a scale, and the sums that zero points need."""

from typing import Any

import numpy as np

from edgellm.kernels.cpu.math import round_to_i32
from edgellm.kernels.simd.arithmetic import absolute, fold_max, fold_sum_i32, maximum, splat_f32
from edgellm.kernels.simd.kernel import kernel
from edgellm.kernels.simd.memory import store_f32, store_i8x16, store_i32

CODE_MAX = np.float32(127.0)
ZERO = np.float32(0.0)


@kernel
def quantize_block(low: Any, high: Any, codes: int, meta: int, tokens: int) -> None:
    """Inputs 0..15 and 16..31 of a block -> 32 codes and the block's meta data in a tile of `tokens` rows.

    scale = max |x| / 127; code = round(x * (127 / max |x|)), ties to even; a block of zeros has scale 0.
    """
    largest = fold_max(maximum(absolute(low), absolute(high)))
    inverse = CODE_MAX / largest if largest > ZERO else ZERO
    scale = largest / CODE_MAX
    low_codes = round_to_i32(low * splat_f32(inverse))
    high_codes = round_to_i32(high * splat_f32(inverse))
    store_i8x16(codes, low_codes)
    store_i8x16(codes + 16, high_codes)
    total = fold_sum_i32(low_codes + high_codes)
    store_f32(meta, scale)
    store_f32(meta + tokens * 4, scale * np.float32(total))
    store_i32(meta + tokens * 8, -8 * total)
    store_i32(meta + tokens * 12, -128 * total)
