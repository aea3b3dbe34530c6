"""Blocks of layers that families share, as calls on the graph and as plain NumPy."""

import math

import numpy as np
from numpy.typing import NDArray

from edgellm.families.base import Weights
from edgellm.families.network import Attention, GatedFFN, Rope
from edgellm.kernels import reference
from edgellm.kernels.kv_formats import kv_formats
from edgellm.runtime.graph import GraphBuilder, Value

Floats = NDArray[np.float64]
LOG2_E = math.log2(math.e)  # attention takes powers of two


def attention(g: GraphBuilder, x: Value, block: Attention) -> Value:
    """Causal attention of normed rows, and its output projection; named within the open layer."""
    size = block.head_size
    name = block.name
    q = g.product(x, f"{name}.q", block.heads * size)
    q = g.rotate(q, block.rope, size, scale=block.scale * LOG2_E)
    k = g.rotate(g.product(x, f"{name}.k", block.kv_heads * size), block.rope, size)
    v = g.product(x, f"{name}.v", block.kv_heads * size)
    attended = g.attend(q, k, v, heads=block.heads, kv_heads=block.kv_heads, head_size=size, window=block.window)
    return g.product(attended, f"{name}.output", x.width)


def swiglu(g: GraphBuilder, x: Value, block: GatedFFN) -> Value:
    """The gated feed-forward part of normed rows."""
    gate, up = (g.product(x, f"{block.name}.{which}", block.width) for which in ("gate", "up"))
    return g.product(g.swiglu(gate, up), f"{block.name}.down", x.width)


def reference_attention(x: Floats, block: Attention, weights: Weights, layer: str, kv_cache_dtype: str) -> Floats:
    """What `attention` computes, for a whole text [T][D]."""
    name = f"{layer}.{block.name}"
    heads = (len(x), -1, block.head_size)
    q, k, v = (reference.matmul(x, weights.matrix(f"{name}.{which}")).reshape(heads) for which in "qkv")
    if block.rope:
        positions = np.arange(len(x))
        turns = frequencies(block.rope, weights)
        q = reference.rope(q, positions, turns)
        k = reference.rope(k, positions, turns)
    q = q * block.scale * LOG2_E
    prepare = kv_formats()[kv_cache_dtype].prepare
    q = prepare(q)
    k = prepare(k)
    attended = reference.attend(q, k, v, 0, dtype=kv_cache_dtype, window=block.window)
    projected: Floats = reference.matmul(attended.reshape(len(x), -1), weights.matrix(f"{name}.output"))
    return projected


def reference_swiglu(x: Floats, block: GatedFFN, weights: Weights, layer: str) -> Floats:
    """What `swiglu` computes."""
    gate, up, down = (weights.matrix(f"{layer}.{block.name}.{which}") for which in ("gate", "up", "down"))
    activated = reference.silu(reference.matmul(x, gate)) * reference.matmul(x, up)
    projected: Floats = reference.matmul(activated, down)
    return projected


def frequencies(rope: Rope, weights: Weights) -> Floats:
    """Of the pairs of a head, in radians a position, float64 [size/2]."""
    result: Floats = rope.theta ** (-np.arange(0, rope.size, 2) / rope.size) / rope.scale
    return result / weights.vector(rope.factors) if rope.factors and rope.factors in weights else result
