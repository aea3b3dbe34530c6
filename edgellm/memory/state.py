"""What a model's layers remember, laid out: which bytes of a block of tokens are a layer's."""

from collections.abc import Mapping
from dataclasses import dataclass

from edgellm.families.network import KeysValues, Network
from edgellm.kernels.kv_formats.kv_format import KVFormat
from edgellm.kernels.ops import KV_BLOCK


@dataclass(frozen=True)
class LayerKV:
    """Keys and values of a layer in a block: [K] heads, each as its format has it."""

    state: KeysValues
    offset: int  # bytes from the begin of a block
    head_stride: int  # bytes from one head to the next


@dataclass(frozen=True)
class PagedLayout:
    """Blocks of KV_BLOCK tokens, one after the other in an arena; a block holds [layer][K][keys, values]."""

    kv_format: KVFormat
    layers: Mapping[int, LayerKV]
    block_bytes: int

    @property
    def token_bytes(self) -> int:
        """Bytes of keys and values that a token keeps in all layers."""
        return self.block_bytes // KV_BLOCK


def paged_layout(network: Network, kv_format: KVFormat) -> PagedLayout:
    """The layout of a model's keys and values."""
    layers, offset = {}, 0
    for number, state in network.states().items():
        if isinstance(state, KeysValues):
            stride = kv_format.head_bytes(state.head_size)
            layers[number] = LayerKV(state, offset, stride)
            offset += state.kv_heads * stride
    return PagedLayout(kv_format, layers, offset)
