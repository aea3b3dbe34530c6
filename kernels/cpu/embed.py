"""The embeddings of the step's tokens: rows of a packed matrix, as floats."""

from edgellm.kernels.cpu.rows import first_of
from edgellm.kernels.ops import EMBED, STEP, WEIGHT_HEAD
from edgellm.kernels.simd.kernel import kernel
from edgellm.kernels.simd.memory import call_4, load_i32, load_i64

OUT, WEIGHT, WIDTH = EMBED.out, EMBED.weight, EMBED.width
ROW = 8 * WEIGHT_HEAD.index("row")
ROWS, TOKENS = STEP.rows, STEP.tokens


@kernel
def embed(op: int, step: int, thread: int, threads: int) -> None:
    weight, width, rows = load_i64(op + WEIGHT), load_i64(op + WIDTH), load_i64(step + ROWS)
    for row in range(first_of(rows, thread, threads), first_of(rows, thread + 1, threads)):
        token = load_i32(load_i64(step + TOKENS) + row * 4)
        call_4(load_i64(weight + ROW), weight, token, width, load_i64(op + OUT) + row * width * 4)
