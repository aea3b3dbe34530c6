"""Random bytes of GGUF's block types whose scales are finite numbers."""

import numpy as np
from numpy.typing import NDArray

# Inputs and bytes of a block, and where its f16 scales lie; the exponent of MXFP4 is its first byte
GGUF_TYPES = {
    "Q4_K": (256, 144, (0, 2)),
    "Q5_K": (256, 176, (0, 2)),
    "Q6_K": (256, 210, (208,)),
    "IQ4_NL": (32, 18, (0,)),
    "IQ4_XS": (256, 136, (0,)),
    "MXFP4": (32, 17, ()),
}


def random_blocks(
    kind: str, rows: int, columns: int, rng: np.random.Generator, deviation: float = 1.0
) -> NDArray[np.uint8]:
    """uint8 [rows][bytes] of weights of about this standard deviation or more."""
    inputs, size, scales = GGUF_TYPES[kind]
    blocks = rng.integers(0, 256, (rows, columns // inputs, size)).astype(np.uint8)
    for at in scales:
        values = rng.uniform(-1, 1, blocks.shape[:2]) * deviation
        blocks[:, :, at : at + 2] = values.astype(np.float16)[:, :, None].view(np.uint8)
    if kind == "MXFP4":
        blocks[:, :, 0] = rng.integers(120, 130, blocks.shape[:2])
    return blocks.reshape(rows, -1)
