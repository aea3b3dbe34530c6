"""What a family of models must say of itself."""

from collections.abc import Collection, Mapping
from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgellm.families.metadata import Metadata
from edgellm.families.network import Network

if TYPE_CHECKING:  # graphs name parts of networks
    from edgellm.runtime.graph import GraphBuilder


class Weights(Protocol):
    """A model's tensors as floats."""

    def matrix(self, name: str) -> NDArray[np.float32]:
        """A matrix, dequantized, [N][C]."""

    def vector(self, name: str) -> NDArray[np.float32]: ...

    def __contains__(self, name: str) -> bool:
        """Whether the model has the float32 tensor."""


class Family(Protocol):
    """The one place that knows an architecture. Errors: UnsupportedModelError for what it does not run."""

    name: str  # of the architecture, in GGUF and packed files

    def __hash__(self) -> int:
        """By identity, or whatever tells one family from another: graphs are kept for it."""

    def read_gguf(self, metadata: Metadata, tensors: Collection[str]) -> Network:
        """The network that a GGUF file describes, by its metadata and the names of its tensors."""

    def gguf_name(self, tensor: str) -> str:
        """GGUF's name of one of our tensors."""

    def network(self, config: Mapping[str, Any]) -> Network:
        """The network of a packed file's config."""

    def build(self, network: Network, g: "GraphBuilder") -> None:
        """Say what a step computes: calls in order, no arithmetic."""

    def reference(
        self, network: Network, weights: Weights, ids: Seq[int], kv_cache_dtype: str = "bf16"
    ) -> NDArray[np.float64]:
        """Logits [T][V] of a text in plain NumPy, without a cache: what the graph must compute. Slow; for tests."""
