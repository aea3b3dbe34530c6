"""The embedding of a token: one row of a packed matrix, as floats."""

import numpy as np

from edgellm.kernels.cpu.rows import first_of
from edgellm.kernels.layouts import BLOCK, LANES, PANEL
from edgellm.kernels.ops import EMBED, INT4, INT4_ASYM, INT8, STEP
from edgellm.kernels.simd.kernel import kernel
from edgellm.kernels.simd.memory import load_f16, load_i32, load_i64, load_u8, store_f32

OUT, LAYOUT, CODES, SCALES, MINS = EMBED.out, EMBED.layout, EMBED.codes, EMBED.scales, EMBED.mins
GROUP, WIDTH = EMBED.group, EMBED.width
ROWS, TOKENS = STEP.rows, STEP.tokens
ZERO = np.float32(0.0)


@kernel
def code_at(layout: int, half_block: int, lane: int, i: int) -> int:
    """Input i of a block of 16 rows, as the number that its scale multiplies; byte pictures in layouts.py."""
    if layout == INT8:
        return load_u8(half_block + (i >> 2) * 64 + lane * 4 + (i & 3)) - 128
    byte = load_u8(half_block + ((i & 15) >> 2) * 64 + lane * 4 + (i & 3))
    nibble = byte >> 4 if i >= 16 else byte & 15
    return nibble - 8 if layout == INT4 else nibble


@kernel
def embed(op: int, step: int, thread: int, threads: int) -> None:
    layout, width, group = load_i64(op + LAYOUT), load_i64(op + WIDTH), load_i64(op + GROUP)
    block_bytes = 1024 if layout == INT8 else 512
    blocks, groups = width // BLOCK, width // group
    rows = load_i64(step + ROWS)
    for row in range(first_of(rows, thread, threads), first_of(rows, thread + 1, threads)):
        token = load_i32(load_i64(step + TOKENS) + row * 4)
        panel, lane = token // PANEL, token % PANEL
        half = lane // LANES
        codes = load_i64(op + CODES) + panel * blocks * block_bytes + half * (block_bytes // 2)
        for block in range(blocks):
            at = ((panel * groups + block * BLOCK // group) * PANEL + lane) * 2
            scale = load_f16(load_i64(op + SCALES) + at)
            low = load_f16(load_i64(op + MINS) + at) if layout == INT4_ASYM else ZERO
            out = load_i64(op + OUT) + (row * width + block * BLOCK) * 4
            for i in range(BLOCK):
                code = code_at(layout, codes + block * block_bytes, lane % LANES, i)
                store_f32(out + i * 4, scale * np.float32(code) + low)
