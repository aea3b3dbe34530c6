"""Llama: RMSNorm, attention with grouped heads and rotated positions, SwiGLU (Touvron et al., arXiv 2302.13971).

Mistral's sliding window and models that leave the head to the embedding are of the same family.
"""

from collections.abc import Collection, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import GGUFError, UnsupportedModelError
from edgellm.families.base import Weights
from edgellm.families.blocks import attention, reference_attention, reference_swiglu, swiglu
from edgellm.families.config import FamilyConfig
from edgellm.families.metadata import Metadata
from edgellm.families.network import Attention, GatedFFN, Layer, Network, Rope, TensorSpec
from edgellm.kernels import reference
from edgellm.runtime.graph import GraphBuilder

_WHOLE_MODEL = {"embedding": "token_embd", "head": "output", "norm": "output_norm", "rope_factors": "rope_freqs"}
_LAYER = {
    "attention.norm": "attn_norm",
    "attention.q": "attn_q",
    "attention.k": "attn_k",
    "attention.v": "attn_v",
    "attention.output": "attn_output",
    "ffn.norm": "ffn_norm",
    "ffn.gate": "ffn_gate",
    "ffn.up": "ffn_up",
    "ffn.down": "ffn_down",
}


@dataclass(frozen=True)
class LlamaConfig(FamilyConfig):
    """What a packed file stores."""

    width: int  # D
    heads: int  # H
    kv_heads: int  # K
    head_size: int  # E
    ffn_width: int  # F
    vocabulary: int  # V
    context: int  # tokens the model was trained for
    rope_theta: float
    rope_size: int  # the first rope_size entries of a head are rotated; even, at most E
    rope_scale: float  # linear position scaling: positions are divided by it
    norm_epsilon: float
    tied_head: bool  # the output head is the embedding
    sliding_window: int | None = None  # tokens that a token sees, itself the last; None: all before it


class Llama:
    """The family."""

    name = "llama"

    def read_gguf(self, metadata: Metadata, tensors: Collection[str]) -> Network:
        tokens = metadata.list("tokenizer.ggml.tokens")
        ours = metadata.below(self.name)
        if ours.count("expert_count", 0):
            raise UnsupportedModelError(
                f"llama.expert_count = {ours.count('expert_count')}: mixtures of experts are not supported; "
                "this edgellm runs dense models of the Llama family"
            )
        heads = ours.count("attention.head_count")
        width = ours.count("embedding_length")
        if not heads:
            raise GGUFError("llama.attention.head_count is 0; get the file again")
        head_size = ours.count("attention.key_length", width // heads)
        value_size = ours.count("attention.value_length", head_size)
        if value_size != head_size:
            raise UnsupportedModelError(
                f"keys have {head_size} and values {value_size} entries a head; this edgellm runs models where both "
                "have as many"
            )
        config = LlamaConfig(
            architecture=self.name,
            layers=ours.count("block_count"),
            width=width,
            heads=heads,
            kv_heads=ours.count("attention.head_count_kv", heads),
            head_size=head_size,
            ffn_width=ours.count("feed_forward_length"),
            vocabulary=len(tokens),
            context=ours.count("context_length"),
            rope_theta=ours.number("rope.freq_base", 10000.0),
            rope_size=ours.count("rope.dimension_count", head_size),
            rope_scale=_rope_scale(ours),
            norm_epsilon=ours.number("attention.layer_norm_rms_epsilon"),
            tied_head=self.gguf_name("head") not in tensors,
            sliding_window=ours.count("attention.sliding_window", 0) or None,
        )
        return self.network(config.to_json())

    def gguf_name(self, tensor: str) -> str:
        if tensor in _WHOLE_MODEL:
            return f"{_WHOLE_MODEL[tensor]}.weight"
        _, layer, part = tensor.split(".", 2)
        return f"blk.{layer}.{_LAYER[part]}.weight"

    def network(self, config: Mapping[str, Any]) -> Network:
        c = LlamaConfig.from_json(config)
        rope = Rope(c.rope_theta, c.rope_size, c.rope_scale, factors="rope_factors")
        mixer = Attention(c.heads, c.kv_heads, c.head_size, c.head_size**-0.5, rope, c.sliding_window)
        layer = Layer(mixer, GatedFFN(c.ffn_width), c.norm_epsilon)
        return Network(
            family=self.name,
            config=c.to_json(),
            width=c.width,
            vocabulary=c.vocabulary,
            context=c.context,
            tied_head=c.tied_head,
            norm_epsilon=c.norm_epsilon,
            layers=(layer,) * c.layers,
            optional_tensors=(TensorSpec("rope_factors", (c.rope_size // 2,), is_optional=True),),
        )

    def build(self, network: Network, g: GraphBuilder) -> None:
        x = g.embed("embedding", network.width)
        for number, layer in enumerate(network.layers):
            with g.layer(number):
                h = g.norm(x, "attention.norm", layer.norm_epsilon)
                x = g.add(x, attention(g, h, layer.mixer))
                h = g.norm(x, "ffn.norm", layer.norm_epsilon)
                x = g.add(x, swiglu(g, h, layer.ffn))
        h = g.norm(g.select(x), "norm", network.norm_epsilon)
        g.sample(g.product(h, network.head, network.vocabulary, label="head"))

    def reference(
        self, network: Network, weights: Weights, ids: Seq[int], kv_cache_dtype: str = "bf16"
    ) -> NDArray[np.float64]:
        x = reference.embed(weights.matrix("embedding"), np.asarray(ids)).astype(np.float64)
        for number, layer in enumerate(network.layers):
            name = f"layers.{number}"
            h = reference.norm(x, weights.vector(f"{name}.attention.norm"), layer.norm_epsilon)
            x = x + reference_attention(h, layer.mixer, weights, name, kv_cache_dtype)
            h = reference.norm(x, weights.vector(f"{name}.ffn.norm"), layer.norm_epsilon)
            x = x + reference_swiglu(h, layer.ffn, weights, name)
        h = reference.norm(x, weights.vector("norm"), network.norm_epsilon)
        logits: NDArray[np.float64] = reference.matmul(h, weights.matrix(network.head))
        return logits


def _rope_scale(metadata: Metadata) -> float:
    kind = metadata.text("rope.scaling.type", "linear")
    if kind not in ("none", "linear"):
        raise UnsupportedModelError(
            f"llama.rope.scaling.type = {kind!r:.100} is not supported; it must be one of: none, linear"
        )
    factor = metadata.number("rope.scaling.factor", metadata.number("rope.scale_linear", 1.0))
    return 1.0 if kind == "none" or factor == 0 else factor  # writers put 0 where they mean "no scaling"


FAMILY = Llama()
