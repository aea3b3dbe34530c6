"""What becomes of the outputs of a matrix product, 32 of a few rows while they are in the cache (ops.py, EPILOGUES).

Those that write keys and values belong to a KV format: attention/keep.py.
"""

from edgellm.kernels.cpu.math import silu
from edgellm.kernels.cpu.quantize import clear_slots, quantize_block
from edgellm.kernels.ops import EPILOGUES, META_BYTES
from edgellm.kernels.panels import BLOCK
from edgellm.kernels.simd.kernel import kernel
from edgellm.kernels.simd.memory import load_f32x16, load_i64, store_f32x16

STORE, ADD, SWIGLU = (EPILOGUES[name] for name in ("store", "add", "swiglu"))
STORE_OUT, STORE_STRIDE = STORE.out, STORE.stride
ADD_OUT, ADD_STRIDE = ADD.out, ADD.stride
SWIGLU_CODES, SWIGLU_META, SWIGLU_STRIDE = SWIGLU.out_codes, SWIGLU.out_meta, SWIGLU.stride


@kernel
def store(operands: int, step: int, y: int, second: int, start: int, tokens: int, rows: int, panel: int) -> None:
    out, stride = load_i64(operands + STORE_OUT), load_i64(operands + STORE_STRIDE)
    for t in range(rows):
        at, to = y + t * 128, out + ((start + t) * stride + panel * BLOCK) * 4
        store_f32x16(to, load_f32x16(at))
        store_f32x16(to + 64, load_f32x16(at + 64))


@kernel
def add(operands: int, step: int, y: int, second: int, start: int, tokens: int, rows: int, panel: int) -> None:
    out, stride = load_i64(operands + ADD_OUT), load_i64(operands + ADD_STRIDE)
    for t in range(rows):
        at, to = y + t * 128, out + ((start + t) * stride + panel * BLOCK) * 4
        store_f32x16(to, load_f32x16(to) + load_f32x16(at))
        store_f32x16(to + 64, load_f32x16(to + 64) + load_f32x16(at + 64))


@kernel
def swiglu(operands: int, step: int, y: int, second: int, start: int, tokens: int, rows: int, panel: int) -> None:
    stride = load_i64(operands + SWIGLU_STRIDE)
    codes = load_i64(operands + SWIGLU_CODES) + start * stride + panel * tokens * BLOCK
    meta = load_i64(operands + SWIGLU_META) + (start * (stride >> 5) + panel * tokens) * META_BYTES
    for t in range(rows):
        at, also = y + t * 128, second + t * 128
        low = silu(load_f32x16(at)) * load_f32x16(also)
        high = silu(load_f32x16(at + 64)) * load_f32x16(also + 64)
        quantize_block(low, high, codes + t * BLOCK, meta + t * 4, tokens)
    clear_slots(meta, rows, tokens)
