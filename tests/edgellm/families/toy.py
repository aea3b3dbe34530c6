"""A family that edgellm does not know, in one file: attention and feed-forward part side by side behind one norm.

Every second layer does not rotate positions, and epsilon is no matter of the file.
"""

from collections.abc import Collection, Iterator, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.families.base import Weights
from edgellm.families.blocks import attention, reference_attention, reference_swiglu, swiglu
from edgellm.families.config import FamilyConfig
from edgellm.families.metadata import Metadata
from edgellm.families.network import Attention, GatedFFN, Layer, Network, Rope, TensorSpec
from edgellm.kernels import reference
from edgellm.runtime.graph import GraphBuilder

EPSILON = 1e-6
GGUF_NAMES = {
    "embedding": "words", "head": "answer", "norm": "calm", "turns": "turns",
    "attention.q": "ask", "attention.k": "key", "attention.v": "tell", "attention.output": "mix",
    "ffn.gate": "gate", "ffn.up": "wide", "ffn.down": "narrow",
}  # fmt: skip


@dataclass(frozen=True)
class ToyConfig(FamilyConfig):
    """What a packed file stores."""

    width: int  # D
    heads: int  # H
    kv_heads: int  # K
    head_size: int  # E
    ffn_width: int  # F
    vocabulary: int  # V
    context: int  # tokens the model was trained for
    tied_head: bool  # the output head is the embedding


@dataclass(frozen=True)
class ToyLayer(Layer[Attention, GatedFFN]):
    """Two blocks behind one norm."""

    def tensors(self, width: int) -> Iterator[TensorSpec]:
        yield TensorSpec("norm", (width,))
        for block in (self.mixer, self.ffn):
            yield from (replace(spec, name=f"{block.name}.{spec.name}") for spec in block.tensors(width))


class Toy:
    """The family."""

    name = "toy"

    def read_gguf(self, metadata: Metadata, tensors: Collection[str]) -> Network:
        ours = metadata.below(self.name)
        config = ToyConfig(
            architecture=self.name,
            layers=ours.count("depth"),
            width=ours.count("width"),
            heads=ours.count("heads"),
            kv_heads=ours.count("kv_heads"),
            head_size=ours.count("head_size"),
            ffn_width=ours.count("ffn_width"),
            vocabulary=len(metadata.list("tokenizer.ggml.tokens")),
            context=ours.count("context"),
            tied_head=self.gguf_name("head") not in tensors,
        )
        return self.network(config.to_json())

    def gguf_name(self, tensor: str) -> str:
        if tensor in GGUF_NAMES:
            return GGUF_NAMES[tensor]
        _, layer, part = tensor.split(".", 2)
        return f"floor{layer}.{GGUF_NAMES[part]}"

    def network(self, config: Mapping[str, Any]) -> Network:
        c = ToyConfig.from_json(config)
        rope = Rope(10000.0, c.head_size, factors="turns")
        mixer = Attention(c.heads, c.kv_heads, c.head_size, c.head_size**-0.5, rope)
        ffn = GatedFFN(c.ffn_width)
        kinds = ToyLayer(mixer, ffn, EPSILON), ToyLayer(replace(mixer, rope=None), ffn, EPSILON)
        return Network(
            family=self.name,
            config=c.to_json(),
            width=c.width,
            vocabulary=c.vocabulary,
            context=c.context,
            tied_head=c.tied_head,
            norm_epsilon=EPSILON,
            layers=tuple(kinds[number % 2] for number in range(c.layers)),
            optional_tensors=(TensorSpec("turns", (c.head_size // 2,), is_optional=True),),
        )

    def build(self, network: Network, g: GraphBuilder) -> None:
        x = g.embed("embedding", network.width)
        for number, layer in enumerate(network.layers):
            with g.layer(number):
                h = g.norm(x, "norm", layer.norm_epsilon)
                mixed, fed = attention(g, h, layer.mixer), swiglu(g, h, layer.ffn)
                x = g.add(g.add(x, fed), mixed)
        h = g.norm(g.select(x), "norm", network.norm_epsilon)
        g.sample(g.product(h, network.head, network.vocabulary, label="head"))

    def reference(
        self, network: Network, weights: Weights, ids: Seq[int], kv_cache_dtype: str = "bf16"
    ) -> NDArray[np.float64]:
        x = reference.embed(weights.matrix("embedding"), np.asarray(ids)).astype(np.float64)
        for number, layer in enumerate(network.layers):
            name = f"layers.{number}"
            h = reference.norm(x, weights.vector(f"{name}.norm"), layer.norm_epsilon)
            mixed = reference_attention(h, layer.mixer, weights, name, kv_cache_dtype)
            x = x + mixed + reference_swiglu(h, layer.ffn, weights, name)
        h = reference.norm(x, weights.vector("norm"), network.norm_epsilon)
        logits: NDArray[np.float64] = reference.matmul(h, weights.matrix(network.head))
        return logits


FAMILY = Toy()
