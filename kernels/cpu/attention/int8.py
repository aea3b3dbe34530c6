"""The kernels of the KV format int8; kv_formats/int8.py draws the bytes."""

from collections.abc import Callable
from typing import Any

from edgellm.kernels.cpu.attention.blocks import FEW
from edgellm.kernels.cpu.attention.codes import add_values_int8, score_int8
from edgellm.kernels.cpu.attention.keep import make_key, make_query, make_value
from edgellm.kernels.cpu.quantize import quantize_kv
from edgellm.kernels.cpu.rows import CACHE_HEAD_SIZE
from edgellm.kernels.ops import KV_BLOCK, RESULT_HEADER
from edgellm.kernels.simd.hadamard import hadamard
from edgellm.kernels.simd.kernel import inlined, kernel
from edgellm.kernels.simd.memory import load_i64, scatter_i8, store_i8x16


@kernel
def score(cache: int, queries: int, count: int, keys: int, next_keys: int, scratch: int, out: int) -> None:
    head_size = load_i64(cache + CACHE_HEAD_SIZE)
    score_int8(queries, count, keys, head_size, scratch, out)
    if next_keys and count <= FEW:
        score_int8(queries, count, next_keys, head_size, scratch, out + KV_BLOCK * 4)


@kernel
def values(cache: int, weights: int, count: int, block: int, ahead: int, pairs: int, scratch: int, out: int) -> None:
    head_size = load_i64(cache + CACHE_HEAD_SIZE)
    add_values_int8(weights, count, block, ahead, head_size, pairs, scratch, out, RESULT_HEADER + head_size)


@inlined
def transformed(low: Any, high: Any) -> Any:
    return hadamard(low, high)


@inlined
def write_key(block: int, entry: int, slot: int, head_size: int, low: Any, high: Any) -> None:
    scales = block + 2 * KV_BLOCK * head_size
    low, high = quantize_kv(low, high, scales + (entry + slot) * 2)
    scatter_i8(block + entry * KV_BLOCK + slot, low, KV_BLOCK)
    scatter_i8(block + (entry + 16) * KV_BLOCK + slot, high, KV_BLOCK)


@inlined
def write_value(block: int, entry: int, slot: int, head_size: int, low: Any, high: Any) -> None:
    codes, scales = block + KV_BLOCK * head_size, block + (2 * KV_BLOCK + 2) * head_size
    low, high = quantize_kv(low, high, scales + (entry + slot) * 2)
    store_i8x16(codes + slot * head_size + entry, low)
    store_i8x16(codes + slot * head_size + entry + 16, high)


def kernels() -> dict[str, Callable[..., None]]:
    """What the unit exports."""
    return {
        "score_int8": score,
        "values_int8": values,
        "query_int8": make_query(transformed),
        "key_int8": make_key(transformed, write_key),
        "value_int8": make_value(write_value),
    }
