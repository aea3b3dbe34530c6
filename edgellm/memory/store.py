"""Where blocks and slots lie: in the process's memory, or on a device."""

import threading
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgellm.memory.buffers import CAN_COMMIT, address, aligned_zeros, commit
from edgellm.memory.layout import StateLayout

Bytes = NDArray[np.uint8]


class StateStore(Protocol):
    """The bytes of groups of blocks, and of slots; byte for byte alike in every store. Places are numbers."""

    def read(self, group: int, place: int) -> Bytes:
        """A block, uint8 [BlockLayout.nbytes], to be read until the next step."""

    def write(self, group: int, place: int, data: Bytes) -> None: ...

    def copy(self, group: int, source: int, target: int) -> None: ...

    def read_slot(self, slot: int) -> Bytes:
        """A slot, uint8 [SlotLayout.nbytes], to be read until the next step."""

    def write_slot(self, slot: int, data: Bytes) -> None: ...

    def prepare(self, places: Iterable[int]) -> None:
        """Blocks of group 0 will be written soon."""


class HostStore:
    """In the process's memory, which the system commits as it is touched."""

    def __init__(self, layout: StateLayout, num_places: Seq[int], num_slots: int) -> None:
        """`num_places` of each group."""
        self.arenas = [
            aligned_zeros((count, group.nbytes), np.uint8)
            for count, group in zip(num_places, layout.groups, strict=True)
        ]
        self.slots = aligned_zeros((num_slots, layout.slots.nbytes if layout.slots else 0), np.uint8)

    def bases(self) -> dict[str, int]:
        """Where the arenas begin, by name: "blocks.<group>" and "slots"."""
        blocks = {f"blocks.{number}": address(arena) for number, arena in enumerate(self.arenas)}
        return blocks | {"slots": address(self.slots)}

    def read(self, group: int, place: int) -> Bytes:
        """The bytes themselves."""
        view: Bytes = self.arenas[group][place]
        return view

    def write(self, group: int, place: int, data: Bytes) -> None:
        self.arenas[group][place] = data

    def copy(self, group: int, source: int, target: int) -> None:
        self.arenas[group][target] = self.arenas[group][source]

    def read_slot(self, slot: int) -> Bytes:
        """The bytes themselves."""
        view: Bytes = self.slots[slot]
        return view

    def write_slot(self, slot: int, data: Bytes) -> None:
        self.slots[slot] = data

    def prepare(self, places: Iterable[int]) -> None:
        """Commit their memory in the background, where the system can.

        Else it is committed when first written, which takes twice the time of writing, and on a virtual machine whose
        own memory is committed like this twenty times.
        """
        views = [self.read(0, place) for place in places]
        if CAN_COMMIT and views:
            threading.Thread(target=commit, args=views, name="edgellm-kv", daemon=True).start()
