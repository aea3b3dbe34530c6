"""How much a model computes at once and keeps, unless asked otherwise."""

import bisect
from collections.abc import Callable
from typing import NamedTuple

import psutil

from edgellm.backends.base import Backend
from edgellm.errors import OptionError
from edgellm.kernels.ops import KV_BLOCK
from edgellm.memory.kv import KVCache
from edgellm.memory.layout import StateLayout

# Tokens of a prompt computed in one step, within which nothing can be cancelled: fewer, the larger the model
MAX_ROWS, MIN_ROWS = 256, 60
FULL_ROWS_BYTES = 200_000_000  # of a model that takes MAX_ROWS, in 0.1 s on two slow cores
MAX_LOGIT_ROWS = 64  # rows of a step with logits, which for a large vocabulary are its largest buffer
# KV memory unless asked otherwise, in full contexts and of the free memory; the system commits it only as touched
MOST_CONTEXTS, FREE_SHARE = 4, 4
MOST_SMALL_CONTEXTS = 64  # of a model that keeps no keys and values of all tokens
MAX_UNREAD = 4096  # pieces of a request that wait for its reader, before it computes no more
SLOTS_AT_WORK = 8  # recurrent states beside those that are kept: two for each text at work


def step_rows(nbytes: int) -> int:
    """Rows of a step of a model whose file has so many bytes."""
    return max(MIN_ROWS, MAX_ROWS * min(FULL_ROWS_BYTES, nbytes) // nbytes)


def make_cache(layout: StateLayout, *, context: int, rows: int, kv_memory: int | None, backend: Backend) -> KVCache:
    """A KV cache of `kv_memory` bytes; None: for some contexts, or what a share of the free memory holds, but for one.

    `rows` is how many a step computes at most. Errors: OptionError for memory that does not hold one block.
    """
    needed = -(-context // KV_BLOCK)

    def shape(num_blocks: int) -> _Shape:
        return _shape(layout, num_blocks, needed, context, rows)

    if kv_memory is None:
        free = psutil.virtual_memory().available // FREE_SHARE
        blocks = max(needed, _most(lambda count: shape(count).nbytes <= free, MOST_CONTEXTS * needed))
    else:
        paged = layout.groups[0].nbytes
        limit = kv_memory // paged if paged else MOST_SMALL_CONTEXTS * needed
        blocks = _most(lambda count: shape(count).nbytes <= kv_memory, limit)
        if blocks == 0:
            raise OptionError(
                f"kv_memory {kv_memory} holds no block of {KV_BLOCK} tokens; give at least {shape(1).nbytes} bytes, "
                f"and {shape(needed).nbytes} for a whole context"
            )
    made = shape(blocks)
    return KVCache(layout, blocks, num_places=made.num_places, num_slots=made.num_slots, make_store=backend.store)


class _Shape(NamedTuple):
    num_places: list[int]  # of each window
    num_slots: int
    nbytes: int


def _shape(layout: StateLayout, num_blocks: int, needed: int, context: int, rows: int) -> _Shape:
    """What goes with so many blocks, of which a context has `needed`."""
    num_places = []
    for group in layout.windows:
        # What one text holds while a step computes: its window, the step's rows, and two blocks that they begin within
        text = -(-(min(group.window or 0, context) + rows) // KV_BLOCK) + 2
        num_places.append(min(num_blocks, max(text, -(-num_blocks * text // needed))))
    num_slots = 0
    if layout.slots is not None:
        num_slots = SLOTS_AT_WORK + num_blocks * KV_BLOCK // layout.state_interval
    nbytes = num_blocks * layout.groups[0].nbytes + num_slots * (layout.slots.nbytes if layout.slots else 0)
    nbytes += sum(count * group.nbytes for count, group in zip(num_places, layout.windows, strict=True))
    return _Shape(num_places, num_slots, nbytes)


def _most(fits: Callable[[int], bool], limit: int) -> int:
    """The largest count up to a limit that fits, as all smaller ones do."""
    return bisect.bisect_left(range(1, limit + 1), True, key=lambda count: not fits(count))
