"""What a model's layers remember, laid out: which bytes of a block of tokens, or of a slot, are a layer's.

group 0       keys and values of all tokens, in blocks of KV_BLOCK tokens; a model may have no such layers
group 1..     keys and values in a sliding window, one group for each width of window
slots         states of a fixed size, one slot for a sequence at a position
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from edgellm.families.network import KeysValues, Network, Recurrent
from edgellm.kernels.kv_formats.kv_format import KVFormat
from edgellm.kernels.ops import KV_BLOCK
from edgellm.memory.buffers import ALIGNMENT

STATE_INTERVAL = 256  # tokens between kept states of a model that keeps nothing else


@dataclass(frozen=True)
class LayerKV:
    """Keys and values of a layer in a block: [K] heads, each as its format has it."""

    state: KeysValues
    offset: int  # bytes from the begin of a block
    head_stride: int  # bytes from one head to the next


@dataclass(frozen=True)
class BlockLayout:
    """A block of a group: [layer][K][keys, values]."""

    layers: Mapping[int, LayerKV]
    nbytes: int
    window: int | None = None  # tokens that a token sees


@dataclass(frozen=True)
class LayerSlot:
    """A layer's state in a slot, float32 [shape]."""

    shape: tuple[int, ...]
    offset: int  # bytes from the begin of a slot


@dataclass(frozen=True)
class SlotLayout:
    """A slot: the recurrent states of all layers."""

    layers: Mapping[int, LayerSlot]
    nbytes: int


@dataclass(frozen=True)
class StateLayout:
    """All that a model remembers of a text."""

    kv_format: KVFormat
    groups: tuple[BlockLayout, ...]
    slots: SlotLayout | None

    @cached_property
    def group_of(self) -> dict[int, int]:
        """Layer -> the group of its keys and values."""
        return {layer: number for number, group in enumerate(self.groups) for layer in group.layers}

    def layer(self, number: int) -> LayerKV:
        """A layer's keys and values."""
        return self.groups[self.group_of[number]].layers[number]

    @property
    def block_bytes(self) -> int:
        """Of a block of all groups."""
        return sum(group.nbytes for group in self.groups)

    @property
    def token_bytes(self) -> int:
        """Of a token's keys and values in all layers."""
        return self.block_bytes // KV_BLOCK

    @cached_property
    def state_interval(self) -> int:
        """Tokens between two recurrent states that are kept: they take at most the memory of what lies between."""
        if self.slots is None or not self.token_bytes:
            return STATE_INTERVAL
        return -(-self.slots.nbytes // (self.token_bytes * KV_BLOCK)) * KV_BLOCK

    @property
    def windows(self) -> tuple[BlockLayout, ...]:
        return self.groups[1:]


def state_layout(network: Network, kv_format: KVFormat) -> StateLayout:
    """The layout of what a network remembers."""
    states = network.states()
    kept = {number: state for number, state in states.items() if isinstance(state, KeysValues)}
    windows = sorted({state.window for state in kept.values() if state.window is not None})
    groups = tuple(_block_layout(kept, kv_format, window) for window in (None, *windows))
    recurrent = {number: state for number, state in states.items() if isinstance(state, Recurrent)}
    return StateLayout(kv_format, groups, _slot_layout(recurrent) if recurrent else None)


def _block_layout(states: Mapping[int, KeysValues], kv_format: KVFormat, window: int | None) -> BlockLayout:
    layers = {}
    offset = 0
    for number, state in states.items():
        if state.window == window:
            stride = kv_format.head_bytes(state.head_size)
            layers[number] = LayerKV(state, offset, stride)
            offset += state.kv_heads * stride
    return BlockLayout(layers, offset, window)


def _slot_layout(states: Mapping[int, Recurrent]) -> SlotLayout:
    layers = {}
    offset = 0
    for number, state in states.items():
        layers[number] = LayerSlot(state.shape, offset)
        offset += -(-4 * math.prod(state.shape) // ALIGNMENT) * ALIGNMENT
    return SlotLayout(layers, offset)
