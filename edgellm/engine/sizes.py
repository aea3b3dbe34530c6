"""How much a model computes at once and keeps, unless asked otherwise."""

import psutil

from edgellm.errors import OptionError
from edgellm.kernels.ops import KV_BLOCK

# Tokens of a prompt computed in one step, within which nothing can be cancelled: fewer, the larger the model
MAX_ROWS, MIN_ROWS = 256, 60
FULL_ROWS_BYTES = 200_000_000  # of a model that takes MAX_ROWS, in 0.1 s on two slow cores
MAX_LOGIT_ROWS = 64  # rows of a step with logits, which for a large vocabulary are its largest buffer
# KV memory unless asked otherwise, in full contexts and of the free memory; the system commits it only as touched
MOST_CONTEXTS, FREE_SHARE = 4, 4


def step_rows(nbytes: int) -> int:
    """Rows of a step of a model whose file has so many bytes."""
    return max(MIN_ROWS, MAX_ROWS * min(FULL_ROWS_BYTES, nbytes) // nbytes)


def num_blocks(context: int, block_bytes: int, kv_memory: int | None) -> int:
    """KV blocks of `kv_memory` bytes; None: some contexts, or what a share of the free memory holds, but one context.

    Errors: OptionError for memory that does not hold one block.
    """
    needed = -(-context // KV_BLOCK)
    if kv_memory is None:
        free = psutil.virtual_memory().available // FREE_SHARE // block_bytes
        return max(needed, min(MOST_CONTEXTS * needed, free))
    if kv_memory < block_bytes:
        raise OptionError(
            f"kv_memory {kv_memory} holds no block of {KV_BLOCK} tokens; give at least {block_bytes} bytes, and "
            f"{needed * block_bytes} for a whole context"
        )
    return kv_memory // block_bytes
