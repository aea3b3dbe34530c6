"""A whole model in plain NumPy: what a step program computes, one operation after another, without a cache."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.kernels import layouts, reference
from edgellm.packed import PackedModel, Weight


def forward(packed: PackedModel, ids: Sequence[int], kv_cache_dtype: str = "bf16") -> Any:
    """Logits float64 [T][V] of a text. Slow; for tests."""
    config = packed.config
    positions = np.arange(len(ids))
    frequencies = config.rope_theta ** (-np.arange(0, config.rope_size, 2) / config.rope_size) / config.rope_scale
    frequencies /= packed.vectors.get("rope_factors", np.ones(config.rope_size // 2))
    x = reference.embed(_dense(packed.weights["embedding"]), np.asarray(ids)).astype(np.float64)
    for layer in range(config.layers):
        weights = {name: _dense(packed.weights[f"layers.{layer}.{name}"]) for name in _LAYER}
        norms = (packed.vectors[f"layers.{layer}.{name}.norm"] for name in ("attention", "ffn"))
        h = reference.norm(x, next(norms), config.norm_epsilon)
        q, k, v = (reference.matmul(h, weights[f"attention.{name}"]) for name in "qkv")
        heads = (len(ids), -1, config.head_size)
        q = reference.rope(q.reshape(heads), positions, frequencies) * config.head_size**-0.5 * np.log2(np.e)
        k = reference.rope(k.reshape(heads), positions, frequencies)
        if kv_cache_dtype == "int8":
            q, k = reference.hadamard(q), reference.hadamard(k)
        attended = reference.attend(q, k, v.reshape(heads), 0, dtype=kv_cache_dtype, window=config.sliding_window)
        x = x + reference.matmul(attended.reshape(len(ids), -1), weights["attention.output"])
        h = reference.norm(x, next(norms), config.norm_epsilon)
        activated = reference.silu(reference.matmul(h, weights["ffn.gate"])) * reference.matmul(h, weights["ffn.up"])
        x = x + reference.matmul(activated, weights["ffn.down"])
    h = reference.norm(x, packed.vectors["norm"], config.norm_epsilon)
    return reference.matmul(h, _dense(packed.weights["embedding" if config.tied_head else "head"]))


_LAYER = (
    "attention.q", "attention.k", "attention.v", "attention.output", "ffn.gate", "ffn.up", "ffn.down",
)  # fmt: skip


def _dense(weight: Weight) -> NDArray[np.float32]:
    return layouts.dequantize(weight.layout, weight.codes, weight.scales, weight.mins, weight.rows)
