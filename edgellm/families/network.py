"""What a network is: its layers, and from them the tensors that it needs and the state that it keeps.

Legend of shapes, used in every docstring of the project:
    R rows of a step   T tokens of a text    S sequences of a step
    D model width      H query heads         K key/value heads     E head size
    F feed-forward width    V vocabulary     L layers              G group of inputs that share a scale
    N, C  output rows and input columns of a weight matrix
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Any, Generic, Protocol, TypeVar

from edgellm.errors import UnsupportedModelError

MAX_LAYERS = 4096  # no sound model comes near; a hostile file must not make us list millions of layers
MAX_HEAD_SIZE = 256  # what the attention kernels take


@dataclass(frozen=True)
class TensorSpec:
    """A tensor of a network."""

    name: str
    shape: tuple[int, ...]
    is_matrix: bool = False  # [N, C], kept in a quantized format; else float32
    is_optional: bool = False  # a file may come without it


@dataclass(frozen=True)
class KeysValues:
    """A layer's keys and values of every token, or of the last `window` tokens."""

    kv_heads: int  # K
    head_size: int  # E
    window: int | None = None


@dataclass(frozen=True)
class Recurrent:
    """A layer's state of a fixed size per sequence, float32, all zeros before the first token."""

    shape: tuple[int, ...]


State = KeysValues | Recurrent


class Block(Protocol):
    """A part of a layer: what mixes tokens, or the feed-forward part. Its tensors are named after it."""

    @property
    def name(self) -> str: ...

    def tensors(self, width: int) -> Iterator[TensorSpec]:
        """Its tensors in a network of `width`, named within the block."""

    @property
    def state(self) -> State | None:
        """What it remembers of a sequence."""


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding (Su et al., arXiv 2104.09864) of neighbouring pairs of entries."""

    theta: float
    size: int  # the first `size` entries of a head are rotated; even
    scale: float = 1.0  # linear position scaling: positions are divided by it
    factors: str | None = None  # a tensor [size/2] by which frequencies are divided, where the file has it


@dataclass(frozen=True)
class Attention:
    """Causal attention with grouped heads."""

    heads: int  # H
    kv_heads: int  # K
    head_size: int  # E
    scale: float  # of the scores
    rope: Rope | None
    window: int | None = None  # tokens that a token sees, itself the last; None: all before it
    name: str = "attention"

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise UnsupportedModelError(f"{self.heads} query heads do not share {self.kv_heads} key/value heads evenly")
        check_multiple("head size", self.head_size)
        if self.head_size > MAX_HEAD_SIZE:
            raise UnsupportedModelError(
                f"head size {self.head_size} is more than the {MAX_HEAD_SIZE} that the kernels take"
            )
        rotated = self.rope.size if self.rope else 0
        if rotated % 2 or rotated > self.head_size:
            raise UnsupportedModelError(f"rope size {rotated} is odd or larger than the head size {self.head_size}")

    def tensors(self, width: int) -> Iterator[TensorSpec]:
        queries = self.heads * self.head_size
        keys = self.kv_heads * self.head_size
        yield TensorSpec("q", (queries, width), is_matrix=True)
        yield TensorSpec("k", (keys, width), is_matrix=True)
        yield TensorSpec("v", (keys, width), is_matrix=True)
        yield TensorSpec("output", (width, queries), is_matrix=True)

    @property
    def state(self) -> KeysValues:
        return KeysValues(self.kv_heads, self.head_size, self.window)


@dataclass(frozen=True)
class GatedFFN:
    """down(silu(gate) * up): SwiGLU (Shazeer, arXiv 2002.05202)."""

    width: int  # F
    name: str = "ffn"

    def __post_init__(self) -> None:
        check_multiple("ffn width", self.width)

    def tensors(self, width: int) -> Iterator[TensorSpec]:
        yield TensorSpec("gate", (self.width, width), is_matrix=True)
        yield TensorSpec("up", (self.width, width), is_matrix=True)
        yield TensorSpec("down", (width, self.width), is_matrix=True)

    @property
    def state(self) -> None:
        return None


Mixer = TypeVar("Mixer", bound=Block)
FFN = TypeVar("FFN", bound=Block)


@dataclass(frozen=True)
class Layer(Generic[Mixer, FFN]):
    """Two blocks, each after an RMSNorm of its own; what they give is added to the residual stream."""

    mixer: Mixer
    ffn: FFN
    norm_epsilon: float

    def tensors(self, width: int) -> Iterator[TensorSpec]:
        for block in (self.mixer, self.ffn):
            yield TensorSpec(f"{block.name}.norm", (width,))
            yield from _within(block.name, block.tensors(width))


@dataclass(frozen=True)
class Network:
    """The complete blueprint of a model; `families/` makes it from the config of a file."""

    family: str
    config: Mapping[str, Any]  # what the packed file stores, JSON; the family makes this network of it again
    width: int  # D
    vocabulary: int  # V
    context: int  # tokens the model was trained for
    tied_head: bool  # the output head is the embedding
    norm_epsilon: float  # of the norm before the head
    layers: tuple[Layer[Any, Any], ...]
    optional_tensors: tuple[TensorSpec, ...] = ()

    def __post_init__(self) -> None:
        check_multiple("width", self.width)

    def __hash__(self) -> int:
        return hash((self.family, self.width, self.vocabulary, len(self.layers)))

    @property
    def head(self) -> str:
        """The matrix whose products with a row are its logits."""
        return "embedding" if self.tied_head else "head"

    @cached_property
    def _tensors(self) -> tuple[TensorSpec, ...]:
        outer = TensorSpec("embedding", (self.vocabulary, self.width), is_matrix=True)
        layers = (_within(f"layers.{n}", layer.tensors(self.width)) for n, layer in enumerate(self.layers))
        head = () if self.tied_head else (replace(outer, name="head"),)
        norm = TensorSpec("norm", (self.width,))
        return (outer, *chain.from_iterable(layers), norm, *head, *self.optional_tensors)

    @cached_property
    def _matrices(self) -> dict[str, tuple[int, int]]:
        return {spec.name: (spec.shape[0], spec.shape[1]) for spec in self._tensors if spec.is_matrix}

    def tensors(self) -> tuple[TensorSpec, ...]:
        """All tensors, in the order in which a step reads them."""
        return self._tensors

    def matrices(self) -> Mapping[str, tuple[int, int]]:
        """The matrices, name -> (N, C)."""
        return self._matrices

    def vectors(self) -> dict[str, tuple[int, ...]]:
        """The float32 tensors that a file must have, name -> shape."""
        return {spec.name: spec.shape for spec in self.tensors() if not spec.is_matrix and not spec.is_optional}

    @property
    def is_recurrent(self) -> bool:
        """Whether layers keep states that forget no single token."""
        return any(isinstance(state, Recurrent) for state in self.states().values())

    def states(self) -> dict[int, State]:
        """What layers keep of a sequence, layer -> state."""
        found = ((n, layer.mixer.state) for n, layer in enumerate(self.layers))
        return {n: state for n, state in found if state is not None}


def check_multiple(what: str, value: int) -> None:
    """Errors: UnsupportedModelError for a width that is not whole blocks of 32."""
    if value % 32:
        raise UnsupportedModelError(f"{what} {value} is not a multiple of 32, as the kernels need")


def _within(name: str, specs: Iterator[TensorSpec]) -> Iterator[TensorSpec]:
    for spec in specs:  # not by `replace`, which takes three times as long
        yield TensorSpec(f"{name}.{spec.name}", spec.shape, spec.is_matrix, spec.is_optional)
