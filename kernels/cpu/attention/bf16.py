"""The kernels of the KV format bf16; kv_formats/bf16.py draws the bytes."""

from collections.abc import Callable
from typing import Any

from edgellm.kernels.cpu.attention.blocks import FEW, add_values, score_block, score_two_blocks
from edgellm.kernels.cpu.attention.keep import make_key, make_query, make_value
from edgellm.kernels.cpu.rows import CACHE_HEAD_SIZE
from edgellm.kernels.ops import KV_BLOCK, RESULT_HEADER
from edgellm.kernels.simd.bfloat import scatter_bf16, scatter_pairs, to_bf16
from edgellm.kernels.simd.kernel import inlined, kernel
from edgellm.kernels.simd.memory import load_i64


@kernel
def score(cache: int, queries: int, count: int, keys: int, next_keys: int, scratch: int, out: int) -> None:
    head_size = load_i64(cache + CACHE_HEAD_SIZE)
    to_values = head_size * KV_BLOCK * 2
    if next_keys and count <= FEW:
        score_two_blocks(queries, count, keys, next_keys, to_values, head_size, out)
    else:
        to_next = next_keys - keys if next_keys else 0
        score_block(queries, count, keys, to_values, to_next, head_size, out)


@kernel
def values(cache: int, weights: int, count: int, block: int, ahead: int, pairs: int, scratch: int, out: int) -> None:
    head_size = load_i64(cache + CACHE_HEAD_SIZE)
    to_values = head_size * KV_BLOCK * 2
    stride = RESULT_HEADER + head_size
    add_values(weights, count, block + to_values, ahead - to_values, head_size, pairs, out, stride)


@inlined
def as_they_are(low: Any, high: Any) -> Any:
    return low, high


@inlined
def write_key(block: int, entry: int, slot: int, head_size: int, low: Any, high: Any) -> None:
    to = block + (entry * KV_BLOCK + slot * 2) * 2
    scatter_pairs(to, to_bf16(low), KV_BLOCK * 4)
    scatter_pairs(to + 32 * KV_BLOCK, to_bf16(high), KV_BLOCK * 4)


@inlined
def write_value(block: int, entry: int, slot: int, head_size: int, low: Any, high: Any) -> None:
    to = block + (KV_BLOCK * head_size + (slot & -2) * head_size + (slot & 1) + entry * 2) * 2
    scatter_bf16(to, to_bf16(low), 4)
    scatter_bf16(to + 64, to_bf16(high), 4)


def kernels() -> dict[str, Callable[..., None]]:
    """What the unit exports."""
    return {
        "score_bf16": score,
        "values_bf16": values,
        "query_bf16": make_query(as_they_are),
        "key_bf16": make_key(as_they_are, write_key),
        "value_bf16": make_value(write_value),
    }
