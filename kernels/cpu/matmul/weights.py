"""The two kernels of a weight format, made of its pieces: a panel times a tile of rows, and one row of the matrix."""

from collections.abc import Callable

from edgellm.kernels.cpu.matmul.outliers import make_add_outliers
from edgellm.kernels.cpu.matmul.pieces import Pieces
from edgellm.kernels.cpu.matmul.tiles import make_tile
from edgellm.kernels.cpu.rows import HEIGHTS, TALLEST
from edgellm.kernels.panels import BLOCK, LANES, PANEL
from edgellm.kernels.simd.arithmetic import lane_of_f32
from edgellm.kernels.simd.kernel import kernel
from edgellm.kernels.simd.memory import load_i64, store_f32
from edgellm.kernels.simd.vectors import selected
from edgellm.kernels.targets import Tile

Kernel = Callable[..., None]


def make_product(pieces: Pieces) -> Kernel:
    """32 rows of weights times a tile of rows of any height, outliers included."""
    tiles = {height: make_tile(pieces, Tile(selected().halves(height), height)) for height in HEIGHTS}
    one, two, full = tiles[1], tiles[2], tiles[TALLEST]
    four, eight = tiles.get(4, full), tiles.get(8, full)
    open_panel, add_outliers = pieces.open_panel, make_add_outliers(pieces)
    codes_word, block_bytes = pieces.codes, pieces.block_bytes

    @kernel
    def product(
        weight: int, panel: int, x: int, meta: int, blocks: int, tokens: int, out: int, outliers: int, count: int,
        asks_ahead: int,
    ) -> None:  # fmt: skip
        """out float32 [tokens][32] = the tile, with its `count` outliers, times a panel.

        The first tile of rows asks for the next panel; the others find this one in the cache.
        """
        codes = load_i64(weight + codes_word) + panel * blocks * block_bytes
        at = open_panel(weight, panel, blocks)
        ahead = codes + blocks * block_bytes if asks_ahead else 0
        if tokens == 1:
            one(codes, at, x, meta, blocks, out, ahead)
        elif tokens == 2:
            two(codes, at, x, meta, blocks, out, ahead)
        elif tokens == 4:
            four(codes, at, x, meta, blocks, out, ahead)
        elif tokens == 8:
            eight(codes, at, x, meta, blocks, out, ahead)
        else:
            full(codes, at, x, meta, blocks, out, ahead)
        add_outliers(codes, at, out, outliers, count)

    made: Kernel = product
    return made


def make_row(pieces: Pieces) -> Kernel:
    """One row of the matrix, as floats."""
    open_panel, code, scale = pieces.open_panel, pieces.code, pieces.scale
    codes_word, block_bytes, runs, run_inputs = pieces.codes, pieces.block_bytes, pieces.runs, BLOCK // pieces.runs
    has_mins, minimum = pieces.minimum is not None, pieces.minimum or pieces.scale

    @kernel
    def row(weight: int, index: int, columns: int, out: int) -> None:
        blocks, panel = columns // BLOCK, index // PANEL
        half, lane = index % PANEL // LANES, index % LANES
        codes = load_i64(weight + codes_word) + panel * blocks * block_bytes
        at = open_panel(weight, panel, blocks)
        for run in range(blocks * runs):
            weight_scale = scale(at, run, half)
            for place in range(run_inputs):
                value = code(codes, run, place, half) * weight_scale
                if has_mins:
                    value = value + minimum(at, run, half)
                store_f32(out + (run * run_inputs + place) * 4, lane_of_f32(value, lane))

    made: Kernel = row
    return made


def weight_kernels(name: str, pieces: Pieces) -> dict[str, Kernel]:
    """What a weight format's unit exports, by `Quant.kernel`."""
    return {f"product_{name}": make_product(pieces), f"row_{name}": make_row(pieces)}
