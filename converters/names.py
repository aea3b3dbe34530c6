"""A GGUF file's names and numbers -> ours. The runtime speaks one dialect; translation happens here and only here."""

from collections.abc import Mapping
from typing import Any

from edgellm.config import ModelConfig
from edgellm.converters.gguf_reader import GGUFFile, GGUFTensor
from edgellm.errors import GGUFError, UnsupportedModelError
from edgellm.packed_format import expected_vectors, expected_weights

ROPE_FACTORS = "rope_factors"

_WHOLE_MODEL = {"embedding": "token_embd", "head": "output", "norm": "output_norm", ROPE_FACTORS: "rope_freqs"}
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
_REMEDY = "this edgellm runs dense models of the Llama family"


def gguf_name(name: str) -> str:
    """Our name of a weight or vector -> GGUF's name of the tensor."""
    if name in _WHOLE_MODEL:
        return f"{_WHOLE_MODEL[name]}.weight"
    _, layer, part = name.split(".", 2)
    return f"blk.{layer}.{_LAYER[part]}.weight"


def read_config(gguf: GGUFFile) -> ModelConfig:
    """The config that a GGUF file's metadata describes; GGUFError or UnsupportedModelError."""
    metadata = _Metadata(gguf.metadata)
    architecture = metadata.text("general.architecture")
    if architecture != "llama":
        raise UnsupportedModelError(f"architecture {architecture!r:.100} is not supported; {_REMEDY}")
    metadata.prefix = "llama."
    if metadata.count("expert_count", 0):
        raise UnsupportedModelError(
            f"llama.expert_count = {metadata.count('expert_count')}: no mixture of experts yet; {_REMEDY}"
        )
    heads, width = metadata.count("attention.head_count"), metadata.count("embedding_length")
    if not heads:
        raise GGUFError("llama.attention.head_count is 0; get the file again")
    head_size = metadata.count("attention.key_length", width // heads)
    value_size = metadata.count("attention.value_length", head_size)
    if value_size != head_size:
        raise UnsupportedModelError(f"keys of {head_size} and values of {value_size} entries a head; {_REMEDY}")
    return ModelConfig(
        architecture=architecture,
        layers=metadata.count("block_count"),
        width=width,
        heads=heads,
        kv_heads=metadata.count("attention.head_count_kv", heads),
        head_size=head_size,
        ffn_width=metadata.count("feed_forward_length"),
        vocabulary=len(metadata.list("tokenizer.ggml.tokens")),
        context=metadata.count("context_length"),
        rope_theta=metadata.number("rope.freq_base", 10000.0),
        rope_size=metadata.count("rope.dimension_count", head_size),
        rope_scale=_rope_scale(metadata),
        norm_epsilon=metadata.number("attention.layer_norm_rms_epsilon"),
        tied_head=gguf_name("head") not in gguf.tensors,
        sliding_window=metadata.count("attention.sliding_window", 0) or None,
    )


def match_tensors(gguf: GGUFFile, config: ModelConfig) -> dict[str, GGUFTensor]:
    """Our name -> tensor, for every weight and vector of the config; a tensor left over is not ignored in silence."""
    if config.layers > len(gguf.tensors):  # before tables of that size are built
        raise GGUFError(f"llama.block_count is {config.layers}, the file has {len(gguf.tensors)} tensors; get it again")
    shapes: dict[str, tuple[int, ...]] = dict(expected_weights(config))
    shapes |= {name: (size,) for name, size in expected_vectors(config).items()}
    if gguf_name(ROPE_FACTORS) in gguf.tensors:
        shapes[ROPE_FACTORS] = (config.rope_size // 2,)
    matched = {}
    for name, shape in shapes.items():
        tensor = gguf.tensors.get(gguf_name(name))
        if tensor is None:
            raise GGUFError(f"{gguf.path}: tensor {gguf_name(name)} is missing; get the file again")
        if tensor.shape != shape:
            raise GGUFError(f"{gguf.path}: tensor {tensor.name} has the shape {tensor.shape}, the metadata say {shape}")
        matched[name] = tensor
    left_over = sorted(gguf.tensors.keys() - {tensor.name for tensor in matched.values()})
    if left_over:
        raise UnsupportedModelError(f"tensor {left_over[0]!r:.100} has no place in a Llama model; {_REMEDY}")
    return matched


def _rope_scale(metadata: "_Metadata") -> float:
    kind = metadata.text("rope.scaling.type", "linear")
    if kind not in ("none", "linear"):
        raise UnsupportedModelError(
            f"llama.rope.scaling.type = {kind!r:.100} is not supported; known are none and linear"
        )
    factor = metadata.number("rope.scaling.factor", metadata.number("rope.scale_linear", 1.0))
    return 1.0 if kind == "none" or factor == 0 else factor  # writers put 0 where they mean "no scaling"


class _Metadata:
    """Typed look-ups; without a default the entry must be there."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values
        self.prefix = ""

    def count(self, key: str, default: int | None = None) -> int:
        value = self._get(key, default)
        if isinstance(value, list):
            raise UnsupportedModelError(f"{self.prefix}{key} differs from layer to layer; {_REMEDY}")
        if type(value) is not int:
            raise GGUFError(f"metadata {self.prefix}{key} is {value!r:.100}, not a whole number; get the file again")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self._get(key, default)
        if type(value) not in (int, float):
            raise GGUFError(f"metadata {self.prefix}{key} is {value!r:.100}, not a number; get the file again")
        return float(value)

    def text(self, key: str, default: str | None = None) -> str:
        value = self._get(key, default)
        if not isinstance(value, str):
            raise GGUFError(f"metadata {self.prefix}{key} is {value!r:.100}, not a text; get the file again")
        return value

    def list(self, key: str) -> list[Any]:
        value = self._values.get(key)
        if not isinstance(value, list):
            raise GGUFError(f"metadata {key} is {value!r:.100}, not a list; get the file again")
        return value

    def _get(self, key: str, default: Any) -> Any:
        value = self._values.get(self.prefix + key, default)
        if value is None:
            raise GGUFError(f"metadata {self.prefix}{key} is missing; get the file again")
        return value
