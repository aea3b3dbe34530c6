"""Reading memory and nothing else: how fast this machine can."""

from edgellm.kernels.cpu.rows import first_of
from edgellm.kernels.ops import READ
from edgellm.kernels.simd.arithmetic import fold_sum_i32, splat_i32
from edgellm.kernels.simd.kernel import kernel
from edgellm.kernels.simd.memory import load_i32x16, load_i64, store_i64

DATA, BYTES, OUT = READ.data, READ.bytes, READ.out
STRIDE = 512  # bytes a round, in 8 loads whose sums do not wait for each other


@kernel
def read(op: int, step: int, thread: int, threads: int) -> None:
    """out int64 [threads * 8] = a sum of the thread's share of the data, so that no load can be left out."""
    rounds = load_i64(op + BYTES) // STRIDE
    zero = splat_i32(0)
    a, b, c, d, e, f, g, h = zero, zero, zero, zero, zero, zero, zero, zero
    for i in range(first_of(rounds, thread, threads), first_of(rounds, thread + 1, threads)):
        at = load_i64(op + DATA) + i * STRIDE
        a, b = a + load_i32x16(at), b + load_i32x16(at + 64)
        c, d = c + load_i32x16(at + 128), d + load_i32x16(at + 192)
        e, f = e + load_i32x16(at + 256), f + load_i32x16(at + 320)
        g, h = g + load_i32x16(at + 384), h + load_i32x16(at + 448)
    store_i64(load_i64(op + OUT) + thread * 64, fold_sum_i32(((a + b) + (c + d)) + ((e + f) + (g + h))))
