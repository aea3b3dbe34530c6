"""What the network is: the frozen blueprint of a model, in our own names.

Legend of shapes, used in every docstring of the project:
    R rows of a step   T tokens of a text    S sequences of a step
    D model width      H query heads         K key/value heads     E head size
    F feed-forward width    V vocabulary     L layers              G group of inputs that share a scale
    N, C  output rows and input columns of a weight matrix
"""

import math
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, Self

from edgellm.errors import UnsupportedModelError

MAX_DIMENSION = 1 << 24  # no sound model comes near; keeps every product of two dimensions far from overflow


@dataclass(frozen=True)
class ModelConfig:
    """A Llama-family network: RMSNorm, RoPE, grouped-query attention, SwiGLU."""

    architecture: str  # "llama"
    layers: int  # L
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

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type is int and not (type(value) is int and 0 < value <= MAX_DIMENSION):
                raise UnsupportedModelError(f"config: {field.name} = {value!r} is not a count in 1..{MAX_DIMENSION}")
            if field.type is float and not (type(value) is float and math.isfinite(value) and value > 0):
                raise UnsupportedModelError(f"config: {field.name} = {value!r} is not a positive finite number")
            if field.type is bool and type(value) is not bool:
                raise UnsupportedModelError(f"config: {field.name} = {value!r} is not true or false")
        window = self.sliding_window
        if window is not None and not (type(window) is int and 0 < window <= MAX_DIMENSION):
            raise UnsupportedModelError(f"config: sliding_window = {window!r} is not a count in 1..{MAX_DIMENSION}")
        if self.architecture != "llama":
            raise UnsupportedModelError(
                f"architecture {self.architecture!r} is not supported; this version runs: llama"
            )
        if self.heads % self.kv_heads:
            raise UnsupportedModelError(f"{self.heads} query heads do not share {self.kv_heads} key/value heads evenly")
        for name, value in (("width", self.width), ("head size", self.head_size), ("ffn width", self.ffn_width)):
            if value % 32:
                raise UnsupportedModelError(f"{name} {value} is not a multiple of 32, as the kernels need")
        if self.head_size > 256:
            raise UnsupportedModelError(f"head size {self.head_size} is more than the 256 that the kernels take")
        if self.rope_size % 2 or self.rope_size > self.head_size:
            raise UnsupportedModelError(
                f"rope size {self.rope_size} is odd or larger than the head size {self.head_size}"
            )

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """The config that `to_json` wrote; unknown, mistyped, or missing entries (without a default) are errors."""
        names = {field.name for field in fields(cls)}
        needed = {field.name for field in fields(cls) if field.default is MISSING}
        if not isinstance(data, dict) or not needed <= set(data) <= names:
            found = sorted(data) if isinstance(data, dict) else type(data).__name__
            raise UnsupportedModelError(f"config: expected the entries {sorted(names)}, found {found}")
        return cls(**data)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
