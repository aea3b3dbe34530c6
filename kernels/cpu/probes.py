"""Small kernels that tune.py times, one for each way to do a thing: the tiles of products and of attention."""

from collections.abc import Callable

from edgellm.kernels.cpu.attention.tiles import make_scores, make_values
from edgellm.kernels.cpu.matmul.tiles import make_tile
from edgellm.kernels.ops import CHUNK, KV_BLOCK, META_BYTES
from edgellm.kernels.panels import BLOCK
from edgellm.kernels.quants import int4, int4_asym
from edgellm.kernels.quants.quant import Quant
from edgellm.kernels.simd.kernel import kernel
from edgellm.kernels.simd.pairs import make_pairs
from edgellm.kernels.targets import Target, Tile
from edgellm.kernels.tune import (
    HEAD_SIZE,
    QUANTS,
    QUERIES,
    QUERY_BYTES,
    ROWS,
    attend_name,
    bf16_ways,
    product_name,
    tiles,
)

PIECES = {int4.Int4.unit: int4.make_pieces, int4_asym.Int4Asym.unit: int4_asym.make_pieces}


def make_product_probe(quant: Quant, shape: Tile) -> Callable[..., None]:
    """Of a weight format of 4 bits."""
    multiply, height = make_tile(PIECES[quant.unit](), shape), shape.tokens

    @kernel
    def probe(weights: int, rows: int, blocks: int, repeats: int) -> None:
        """A panel (codes, scales of groups of 32, mins) times ROWS rows (codes, meta data, room for the result)."""
        scales = weights + blocks * 512
        mins, meta = scales + blocks * 64, rows + blocks * ROWS * BLOCK
        out = meta + blocks * ROWS * META_BYTES
        for _ in range(repeats):
            for row in range(0, ROWS, height):
                x, m = rows + row * blocks * BLOCK, meta + row * blocks * META_BYTES
                multiply(weights, (scales, mins, 0), x, m, blocks, out + row * 128, 0)

    made: Callable[..., None] = probe
    return made


def make_attend_probe(fast_bf16: bool) -> Callable[..., None]:
    pairs = make_pairs(fast_bf16)
    scores, values = make_scores(QUERIES, 1, pairs), make_values(QUERIES, 2, pairs)

    @kernel
    def probe(queries: int, block: int, out: int, repeats: int) -> None:
        """Queries, QUERY_BYTES of them and then as many weights: times a block of keys, and of values."""
        for _ in range(repeats):
            scores(queries, block, block, 0, HEAD_SIZE, out)
            values(queries + QUERY_BYTES, block, 0, HEAD_SIZE, KV_BLOCK // 2, out + QUERIES * CHUNK * 4, BLOCK)

    made: Callable[..., None] = probe
    return made


def probes(target: Target) -> dict[str, Callable[..., None]]:
    """What to time for a target, by name."""
    products = {
        product_name(quant, tile): make_product_probe(quant, tile) for quant in QUANTS for tile in tiles(target)
    }
    return products | {attend_name(way): make_attend_probe(way) for way in bf16_ways(target)}
