"""The two kernels of a weight format, made of its pieces: a panel times a tile of rows, and one row of the matrix.

`panel_pieces` are those of formats that keep a float scale, and maybe a minimum, per row and group of inputs.
"""

from collections.abc import Callable
from typing import Any

from edgellm.kernels.cpu.matmul.outliers import make_add_outliers
from edgellm.kernels.cpu.matmul.tiles import Pieces, make_tile, panel_codes
from edgellm.kernels.cpu.rows import HEIGHTS, TALLEST
from edgellm.kernels.ops import Record
from edgellm.kernels.panels import BLOCK, LANES, PANEL
from edgellm.kernels.simd.arithmetic import (
    bits_at,
    f32_from_i32,
    lane_of_f32,
    splat_i32,
)
from edgellm.kernels.simd.kernel import inlined, kernel
from edgellm.kernels.simd.memory import load_f16x16, load_i32x16, load_i64, store_f32
from edgellm.kernels.simd.vectors import selected
from edgellm.kernels.targets import Tile

Kernel = Callable[..., None]


def make_product(pieces: Pieces) -> Kernel:
    """32 rows of weights times a tile of rows of any height, outliers included."""
    tiles = {height: make_tile(pieces, Tile(selected().halves(height), height)) for height in HEIGHTS}
    one, two, full = tiles[1], tiles[2], tiles[TALLEST]
    four, eight = tiles.get(4, full), tiles.get(8, full)
    codes_of, open_panel, add_outliers = panel_codes(pieces), pieces.open_panel, make_add_outliers(pieces)
    block_bytes = pieces.block_bytes

    @kernel
    def product(
        weight: int, panel: int, x: int, meta: int, blocks: int, tokens: int, out: int, outliers: int, count: int,
        asks_ahead: int,
    ) -> None:  # fmt: skip
        """out float32 [tokens][32] = the tile, with its `count` outliers, times a panel.

        The first tile of rows asks for the next panel; the others find this one in the cache.
        """
        codes, at = codes_of(weight, panel, blocks), open_panel(weight, panel, blocks)
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
    codes_of, open_panel, code, scale = panel_codes(pieces), pieces.open_panel, pieces.code, pieces.scale
    has_mins, minimum = pieces.minimum is not None, pieces.minimum or pieces.scale

    @kernel
    def row(weight: int, index: int, columns: int, out: int) -> None:
        blocks, panel = columns // BLOCK, index // PANEL
        half, lane = index % PANEL // LANES, index % LANES
        codes, at = codes_of(weight, panel, blocks), open_panel(weight, panel, blocks)
        for block in range(blocks):
            weight_scale = scale(at, block, half)
            for place in range(BLOCK):
                value = code(codes, block, place, half) * weight_scale
                if has_mins:
                    value = value + minimum(at, block, half)
                store_f32(out + (block * BLOCK + place) * 4, lane_of_f32(value, lane))

    made: Kernel = row
    return made


def nibble_code(zero_point: int) -> Callable[..., Any]:
    """`Pieces.code` of a plane of 4 bits."""

    @inlined
    def code(codes: int, block: int, place: int, half: int) -> Any:
        column = codes + block * 512 + half * 256 + ((place & 12) << 4)
        return f32_from_i32(bits_at(load_i32x16(column), (place & 3) * 8 + (place >> 4) * 4, 4) - splat_i32(zero_point))

    made: Callable[..., Any] = code
    return made


@inlined
def byte_code(codes: int, block: int, place: int, half: int) -> Any:
    """`Pieces.code` of a plane of 8 bits."""
    column = codes + block * 1024 + half * 512 + ((place >> 2) << 6)
    return f32_from_i32(bits_at(load_i32x16(column), (place & 3) * 8, 8) - splat_i32(128))


def grouped_scales(record: Record) -> dict[str, Any]:
    """`open_panel`, `scale` and `minimum` for f16 [panel][group][32], a group of 2^group_shift blocks."""
    scales, group_shift = record.scales, record.group_shift
    mins = record.mins if "mins" in record.names else record.scales

    @inlined
    def open_panel(weight: int, panel: int, blocks: int) -> Any:
        shift = load_i64(weight + group_shift)
        offset = panel * (blocks >> shift) * 64
        return load_i64(weight + scales) + offset, load_i64(weight + mins) + offset, shift

    @inlined
    def scale(at: Any, block: int, half: int) -> Any:
        return load_f16x16(at[0] + (block >> at[2]) * 64 + half * 32)

    @inlined
    def minimum(at: Any, block: int, half: int) -> Any:
        return load_f16x16(at[1] + (block >> at[2]) * 64 + half * 32)

    return {"open_panel": open_panel, "scale": scale, "minimum": minimum if "mins" in record.names else None}
