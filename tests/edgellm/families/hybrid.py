"""A toy of a family whose layers remember in every way there is: all keys and values, those in a sliding window, the
last inputs of a short convolution (as LFM2's), and a gated linear attention's matrix.
"""

from collections.abc import Collection, Iterator, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import UnsupportedModelError
from edgellm.families.base import Weights
from edgellm.families.blocks import Floats, attention, reference_attention, reference_swiglu, swiglu
from edgellm.families.config import FamilyConfig
from edgellm.families.metadata import Metadata
from edgellm.families.network import Attention, Block, GatedFFN, Layer, Network, Recurrent, Rope, TensorSpec
from edgellm.kernels import reference
from edgellm.runtime.graph import GraphBuilder, KernelCall, Value
from tests.edgellm.families.hybrid_kernels import CONVOLUTION, LINEAR, TAPS

SOURCE = Path(__file__).with_name("hybrid_kernels.py")


@dataclass(frozen=True)
class HybridConfig(FamilyConfig):
    """What a packed file stores. The head is the embedding."""

    kinds: str  # of the layers, in turn: "window conv linear full"
    width: int
    heads: int  # of all kinds of attention
    head_size: int
    key_size: int  # of a head of linear attention, whose values have head_size
    window: int  # tokens
    ffn_width: int
    vocabulary: int
    context: int


@dataclass(frozen=True)
class ShortConvolution:
    """output(c * conv(b * x)), where in(h) is b | c | x."""

    channels: int
    name: str = "conv"

    def tensors(self, width: int) -> Iterator[TensorSpec]:
        yield TensorSpec("in", (3 * self.channels, width), is_matrix=True)
        yield TensorSpec("taps", (TAPS, self.channels))
        yield TensorSpec("output", (width, self.channels), is_matrix=True)

    @property
    def state(self) -> Recurrent:
        return Recurrent((TAPS - 1, self.channels))


@dataclass(frozen=True)
class LinearAttention:
    """output(S^T q), where S is what decayed of the tokens' k v^T."""

    heads: int
    keys: int
    values: int
    name: str = "linear"

    def tensors(self, width: int) -> Iterator[TensorSpec]:
        for part in ("q", "k", "decay"):
            yield TensorSpec(part, (self.heads * self.keys, width), is_matrix=True)
        yield TensorSpec("v", (self.heads * self.values, width), is_matrix=True)
        yield TensorSpec("output", (width, self.heads * self.values), is_matrix=True)

    @property
    def state(self) -> Recurrent:
        return Recurrent((self.heads, self.keys, self.values))


class Hybrid:
    """The family."""

    name = "toyhybrid"

    def read_gguf(self, metadata: Metadata, tensors: Collection[str]) -> Network:
        ours = metadata.below(self.name)
        counts = ("width", "heads", "head_size", "key_size", "window", "ffn_width", "context")
        config = {count: ours.count(count) for count in counts}
        vocabulary, kinds = len(metadata.list("tokenizer.ggml.tokens")), ours.text("kinds")
        layers = ours.count("layers")
        return self.network(
            {"architecture": self.name, "layers": layers, "kinds": kinds, "vocabulary": vocabulary, **config}
        )

    def gguf_name(self, tensor: str) -> str:
        return tensor

    def network(self, config: Mapping[str, Any]) -> Network:
        c = HybridConfig.from_json(config)
        rope = Rope(10000.0, c.head_size)

        def attends(window: int | None) -> Attention:
            return Attention(c.heads, c.heads, c.head_size, c.head_size**-0.5, rope, window)

        mixers: dict[str, Block] = {
            "window": attends(c.window),
            "conv": ShortConvolution(c.width),
            "linear": LinearAttention(c.heads, c.key_size, c.head_size),
            "full": attends(None),
        }
        kinds = c.kinds.split()
        if not set(kinds) <= set(mixers):
            raise UnsupportedModelError(f"layers of the kinds {c.kinds!r:.100}; known are {', '.join(mixers)}")
        return Network(
            family=self.name,
            config=c.to_json(),
            width=c.width,
            vocabulary=c.vocabulary,
            context=c.context,
            tied_head=True,
            norm_epsilon=1e-5,
            layers=tuple(Layer(mixers[kinds[n % len(kinds)]], GatedFFN(c.ffn_width), 1e-5) for n in range(c.layers)),
        )

    def build(self, network: Network, g: GraphBuilder) -> None:
        mixers = {"attention": attention, "conv": short_convolution, "linear": linear_attention}
        x = g.embed("embedding", network.width)
        for number, layer in enumerate(network.layers):
            with g.layer(number):
                name = layer.mixer.name
                h = g.norm(x, f"{name}.norm", layer.norm_epsilon)
                x = g.add(x, mixers[name](g, h, layer.mixer))
                h = g.norm(x, "ffn.norm", layer.norm_epsilon)
                x = g.add(x, swiglu(g, h, layer.ffn))
        h = g.norm(g.select(x), "norm", network.norm_epsilon)
        g.sample(g.product(h, network.head, network.vocabulary, label="head"))

    def reference(
        self, network: Network, weights: Weights, ids: Seq[int], kv_cache_dtype: str = "bf16"
    ) -> NDArray[np.float64]:
        x = reference.embed(weights.matrix("embedding"), np.asarray(ids)).astype(np.float64)
        for number, layer in enumerate(network.layers):
            name, mixer = f"layers.{number}", layer.mixer
            h = reference.norm(x, weights.vector(f"{name}.{mixer.name}.norm"), layer.norm_epsilon)
            if isinstance(mixer, ShortConvolution):
                x = x + reference_convolution(h, mixer, weights, f"{name}.conv")
            elif isinstance(mixer, LinearAttention):
                x = x + reference_linear(h, mixer, weights, f"{name}.linear")
            else:
                x = x + reference_attention(h, mixer, weights, name, kv_cache_dtype)
            h = reference.norm(x, weights.vector(f"{name}.ffn.norm"), layer.norm_epsilon)
            x = x + reference_swiglu(h, layer.ffn, weights, name)
        h = reference.norm(x, weights.vector("norm"), network.norm_epsilon)
        logits: NDArray[np.float64] = reference.matmul(h, weights.matrix(network.head))
        return logits


def short_convolution(g: GraphBuilder, x: Value, block: ShortConvolution) -> Value:
    mixed = g.product(x, "conv.in", 3 * block.channels)
    call = KernelCall("toyhybrid", SOURCE, CONVOLUTION, convolution_row)
    taps = g.tensor("conv.taps")
    y = g.kernel(
        "short_convolution", call, block.channels, x=mixed, weight=taps, state=g.state, channels=block.channels
    )
    return g.product(y, "conv.output", x.width)


def linear_attention(g: GraphBuilder, x: Value, block: LinearAttention) -> Value:
    parts = {part: g.product(x, f"linear.{part}", block.heads * block.keys) for part in ("q", "k", "decay")}
    v = g.product(x, "linear.v", block.heads * block.values)
    call = KernelCall("toyhybrid", SOURCE, LINEAR, linear_row)
    y = g.kernel(
        "linear_attention", call, v.width, **parts, v=v, state=g.state,
        heads=block.heads, keys=block.keys, values=block.values, scale=float(block.keys**-0.5),
    )  # fmt: skip
    return g.product(y, "linear.output", x.width)


def convolution_row(x: Floats, state: NDArray[np.float32], *, weight: Floats, channels: int) -> Floats:
    """The convolution of one row; `state` is changed."""
    b, c, inner = x.reshape(3, channels)
    inputs = np.vstack((state, b * inner))
    state[:] = inputs[1:]
    row: Floats = c * (weight * inputs).sum(0)
    return row


def linear_row(
    q: Floats, k: Floats, decay: Floats, v: Floats, state: NDArray[np.float32], *,
    heads: int, keys: int, values: int, scale: float,
) -> Floats:  # fmt: skip
    """Linear attention of one row; `state` is changed."""
    q, k, decay = (part.reshape(heads, keys, 1) for part in (q, k, decay))
    state[:] = state / (1 + np.exp(-decay)) + k * v.reshape(heads, 1, values)
    row: Floats = (q * state).sum(1).reshape(-1) * scale
    return row


def reference_convolution(x: Floats, block: ShortConvolution, weights: Weights, name: str) -> Floats:
    b, c, inner = np.split(reference.matmul(x, weights.matrix(f"{name}.in")), 3, axis=1)
    padded = np.vstack((np.zeros((TAPS - 1, block.channels)), b * inner))
    taps = weights.vector(f"{name}.taps")
    y = sum(taps[tap] * padded[tap : tap + len(x)] for tap in range(TAPS))
    projected: Floats = reference.matmul(c * y, weights.matrix(f"{name}.output"))
    return projected


def reference_linear(x: Floats, block: LinearAttention, weights: Weights, name: str) -> Floats:
    """As attention without softmax: a token's weight is q . (k * what decayed of it since)."""
    q, k, decay = (
        reference.matmul(x, weights.matrix(f"{name}.{part}")).reshape(len(x), block.heads, block.keys)
        for part in ("q", "k", "decay")
    )
    v = reference.matmul(x, weights.matrix(f"{name}.v")).reshape(len(x), block.heads, block.values)
    decayed = np.cumsum(-np.log1p(np.exp(-decay)), axis=0)
    since = np.exp(np.minimum(decayed[:, None] - decayed[None], 0))
    scores = np.einsum("rhk,shk,rshk->hrs", q, k, since) * np.tri(len(x)) * block.keys**-0.5
    projected: Floats = reference.matmul(
        np.einsum("hrs,shv->rhv", scores, v).reshape(len(x), -1), weights.matrix(f"{name}.output")
    )
    return projected


FAMILY = Hybrid()
