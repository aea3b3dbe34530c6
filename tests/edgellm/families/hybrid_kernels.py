"""The toy hybrid's own kernels: rows of a sequence one after the other, channels and heads shared out over threads.

All kernels are within `entry_points`: what they are written with can be imported only where they are compiled, and
their records everywhere.
"""

from collections.abc import Callable

import numpy as np

from edgellm.kernels.ops import HEAD, RECURRENT, STEP, Record

TAPS = 4  # of the convolution

# out = c * conv(b * x), of rows b | c | x; weight float32 [TAPS][channels], the newest last; the state holds the last
# TAPS - 1 rows of b * x, oldest first
CONVOLUTION = Record(*HEAD, "x", "x_stride", "out", "out_stride", "weight", "state", "channels")

# In every head: S <- diag(sigmoid(decay)) S + k v^T, out = S^T q * scale; S is float32 [keys][values]
LINEAR = Record(
    *HEAD, "q", "q_stride", "k", "k_stride", "v", "v_stride", "decay", "decay_stride", "out", "out_stride", "state",
    "heads", "keys", "values", "scale",
)  # fmt: skip

SEQUENCE_COUNT, SEQUENCE_ROWS = STEP.sequence_count, STEP.sequence_rows
SLOTS, TABLE, SLOT_STRIDE = RECURRENT.slots, RECURRENT.table, RECURRENT.slot_stride
CONV_X, CONV_X_STRIDE, CONV_OUT, CONV_OUT_STRIDE, CONV_WEIGHT, CONV_STATE, CHANNELS = (
    getattr(CONVOLUTION, name) for name in CONVOLUTION.names[len(HEAD) :]
)
Q, Q_STRIDE, K, K_STRIDE, V, V_STRIDE, DECAY, DECAY_STRIDE, OUT, OUT_STRIDE, STATE, HEADS, KEYS, VALUES, SCALE = (
    getattr(LINEAR, name) for name in LINEAR.names[len(HEAD) :]
)
ONE = np.float32(1.0)


def entry_points() -> dict[str, Callable[..., None]]:
    from edgellm.kernels.cpu.math import exp
    from edgellm.kernels.cpu.rows import first_of
    from edgellm.kernels.simd.arithmetic import fma, splat_f32, zero_f32
    from edgellm.kernels.simd.kernel import kernel
    from edgellm.kernels.simd.memory import (
        broadcast_f32,
        f32_from_bits,
        load_f32x16,
        load_i32,
        load_i64,
        store_f32x16,
    )

    @kernel
    def slot_at(state: int, sequence: int, which: int) -> int:
        """The layer's state of a sequence: where it comes from (0), or goes to (1)."""
        slot = load_i32(load_i64(state + TABLE) + sequence * 8 + which * 4)
        return load_i64(state + SLOTS) + slot * load_i64(state + SLOT_STRIDE)

    @kernel
    def short_convolution(op: int, step: int, thread: int, threads: int) -> None:
        size, state = load_i64(op + CHANNELS) * 4, load_i64(op + CONV_STATE)
        x_stride, out_stride = load_i64(op + CONV_X_STRIDE) * 4, load_i64(op + CONV_OUT_STRIDE) * 4
        units = size >> 6
        for unit in range(first_of(units, thread, threads), first_of(units, thread + 1, threads)):
            at = unit * 64
            w = load_i64(op + CONV_WEIGHT) + at
            w0, w1, w2, w3 = (
                load_f32x16(w), load_f32x16(w + size), load_f32x16(w + 2 * size), load_f32x16(w + 3 * size)
            )  # fmt: skip
            for sequence in range(load_i64(step + SEQUENCE_COUNT)):
                source, target = slot_at(state, sequence, 0) + at, slot_at(state, sequence, 1) + at
                u0, u1, u2 = load_f32x16(source), load_f32x16(source + size), load_f32x16(source + 2 * size)
                rows = load_i64(step + SEQUENCE_ROWS) + sequence * 8
                first = load_i32(rows)
                for row in range(first, first + load_i32(rows + 4)):
                    b = load_i64(op + CONV_X) + row * x_stride + at
                    u3 = load_f32x16(b) * load_f32x16(b + 2 * size)
                    y = fma(w3, u3, fma(w2, u2, fma(w1, u1, w0 * u0)))
                    store_f32x16(load_i64(op + CONV_OUT) + row * out_stride + at, load_f32x16(b + size) * y)
                    u0, u1, u2 = u1, u2, u3
                store_f32x16(target, u0)
                store_f32x16(target + size, u1)
                store_f32x16(target + 2 * size, u2)

    @kernel
    def linear_row(
        state: int, stride: int, keys: int, q: int, k: int, v: int, decay: int, scale: float, out: int
    ) -> None:
        """A token of 16 values of a head, whose columns of S lie `stride` bytes from key to key."""
        value, total = load_f32x16(v), zero_f32()
        for key in range(keys):
            kept = splat_f32(ONE) / (splat_f32(ONE) + exp(zero_f32() - broadcast_f32(decay + key * 4)))
            s = fma(broadcast_f32(k + key * 4), value, kept * load_f32x16(state + key * stride))
            store_f32x16(state + key * stride, s)
            total = fma(broadcast_f32(q + key * 4), s, total)
        store_f32x16(out, total * splat_f32(scale))

    @kernel
    def linear_attention(op: int, step: int, thread: int, threads: int) -> None:
        """A unit is 16 values of a head: columns of S never meet."""
        heads, keys, values = load_i64(op + HEADS), load_i64(op + KEYS), load_i64(op + VALUES)
        scale, state = f32_from_bits(load_i64(op + SCALE)), load_i64(op + STATE)
        panels = values >> 4
        for unit in range(first_of(heads * panels, thread, threads), first_of(heads * panels, thread + 1, threads)):
            head, value = unit // panels, unit % panels * 16
            at = (head * keys * values + value) * 4
            for sequence in range(load_i64(step + SEQUENCE_COUNT)):
                source, target = slot_at(state, sequence, 0) + at, slot_at(state, sequence, 1) + at
                for key in range(keys):
                    store_f32x16(target + key * values * 4, load_f32x16(source + key * values * 4))
                rows = load_i64(step + SEQUENCE_ROWS) + sequence * 8
                first = load_i32(rows)
                for row in range(first, first + load_i32(rows + 4)):
                    q = load_i64(op + Q) + (row * load_i64(op + Q_STRIDE) + head * keys) * 4
                    k = load_i64(op + K) + (row * load_i64(op + K_STRIDE) + head * keys) * 4
                    v = load_i64(op + V) + (row * load_i64(op + V_STRIDE) + head * values + value) * 4
                    decay = load_i64(op + DECAY) + (row * load_i64(op + DECAY_STRIDE) + head * keys) * 4
                    out = load_i64(op + OUT) + (row * load_i64(op + OUT_STRIDE) + head * values + value) * 4
                    linear_row(target, values * 4, keys, q, k, v, decay, scale, out)

    return {"linear_attention": linear_attention, "short_convolution": short_convolution}
