"""The epilogues that attention needs, made for a KV format: queries as it wants them, keys and values into the cache.

A format gives what it does to the entries of a head, 32 at a time, which are two vectors:

    prepare(low, high)                                  of queries and keys, after their rotation -> (low, high)
    write(block, entry, slot, head_size, low, high)     of a key or a value: `block` is where the head's data of a
                                                        block of tokens begins, `slot` the token's place in it
"""

from collections.abc import Callable
from typing import Any

from edgellm.kernels.cpu.rope import turned
from edgellm.kernels.cpu.rows import CACHE_HEAD_SIZE, CACHE_HEAD_STRIDE, POSITIONS, SEQUENCES, kv_address
from edgellm.kernels.ops import EPILOGUES, KV_BLOCK
from edgellm.kernels.panels import BLOCK
from edgellm.kernels.simd.arithmetic import splat_f32
from edgellm.kernels.simd.kernel import inlined, kernel
from edgellm.kernels.simd.memory import f32_from_bits, load_f32x16, load_i32, load_i64, store_f32x16

QUERY, KEY, VALUE = (EPILOGUES[name] for name in ("query", "key", "value"))
QUERY_OUT, QUERY_STRIDE, QUERY_ROPE, QUERY_HEAD_SIZE, QUERY_SCALE = (
    QUERY.out, QUERY.stride, QUERY.rope, QUERY.head_size, QUERY.scale,
)  # fmt: skip
KEY_ROPE, KEY_CACHE, VALUE_CACHE = KEY.rope, KEY.state, VALUE.state
Epilogue = Callable[..., None]


@inlined
def position_of(step: int, row: int) -> int:
    return load_i32(load_i64(step + POSITIONS) + row * 4)


@inlined
def head_block(cache: int, step: int, row: int, position: int, head: int) -> int:
    """Where the data of a head begins, in the block of a row's token."""
    sequence = load_i32(load_i64(step + SEQUENCES) + row * 4)
    return kv_address(cache, sequence, position) + head * load_i64(cache + CACHE_HEAD_STRIDE)


def make_query(prepare: Callable[..., Any]) -> Epilogue:
    @kernel
    def query(operands: int, step: int, y: int, second: int, start: int, tokens: int, rows: int, panel: int) -> None:
        out, stride = load_i64(operands + QUERY_OUT), load_i64(operands + QUERY_STRIDE)
        rope, head_size = load_i64(operands + QUERY_ROPE), load_i64(operands + QUERY_HEAD_SIZE)
        scale = splat_f32(f32_from_bits(load_i64(operands + QUERY_SCALE)))
        first = panel * BLOCK
        for t in range(rows):
            row = start + t
            low, high = turned(y + t * 128, rope, head_size, position_of(step, row), first % head_size)
            low, high = prepare(low, high)
            to = out + (row * stride + first) * 4
            store_f32x16(to, low * scale)
            store_f32x16(to + 64, high * scale)

    made: Epilogue = query
    return made


def make_key(prepare: Callable[..., Any], write: Callable[..., None]) -> Epilogue:
    @kernel
    def key(operands: int, step: int, y: int, second: int, start: int, tokens: int, rows: int, panel: int) -> None:
        rope, cache = load_i64(operands + KEY_ROPE), load_i64(operands + KEY_CACHE)
        head_size = load_i64(cache + CACHE_HEAD_SIZE)
        head, entry = panel * BLOCK // head_size, panel * BLOCK % head_size
        for t in range(rows):
            position = position_of(step, start + t)
            block = head_block(cache, step, start + t, position, head)
            low, high = turned(y + t * 128, rope, head_size, position, entry)
            low, high = prepare(low, high)
            write(block, entry, position & (KV_BLOCK - 1), head_size, low, high)

    made: Epilogue = key
    return made


def make_value(write: Callable[..., None]) -> Epilogue:
    @kernel
    def value(operands: int, step: int, y: int, second: int, start: int, tokens: int, rows: int, panel: int) -> None:
        cache = load_i64(operands + VALUE_CACHE)
        head_size = load_i64(cache + CACHE_HEAD_SIZE)
        head, entry = panel * BLOCK // head_size, panel * BLOCK % head_size
        for t in range(rows):
            position = position_of(step, start + t)
            block = head_block(cache, step, start + t, position, head)
            low, high = load_f32x16(y + t * 128), load_f32x16(y + t * 128 + 64)
            write(block, entry, position & (KV_BLOCK - 1), head_size, low, high)

    made: Epilogue = value
    return made
