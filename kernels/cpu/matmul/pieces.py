"""What a weight format gives to the kernels that are made for it.

Nothing here depends on the shape of register tiles: tune.py times tiles of all shapes before one is chosen.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from edgellm.kernels.ops import Record
from edgellm.kernels.simd.arithmetic import bits_at, f32_from_i32, splat_f32, splat_i32
from edgellm.kernels.simd.kernel import inlined
from edgellm.kernels.simd.memory import load_f16x16, load_i8x16, load_i32x16, load_i64


class Pieces(NamedTuple):
    """What a weight format gives to the kernels that are made for it: functions to become part of them.

    `at` is what `open_panel` found: some numbers that say where a panel's scales lie. `half` is 0 or 1, the first or
    the last 16 rows of the panel. A run are the inputs that one integer dot product takes, a block or half of one, and
    its number counts from the beginning of the row.
    """

    block_bytes: int  # of the codes of a panel, 32 inputs of each of its rows
    codes: int  # offset of the address of all codes in the format's record
    make_dots: Callable[[int, int], Callable[..., Any]]  # halves, tokens -> dots(codes, x, meta), see dots.py
    open_panel: Callable[..., Any]  # (weight record, panel, blocks) -> at
    scale: Callable[..., Any]  # (at, run, half) -> f32x16
    minimum: Callable[..., Any] | None  # likewise, for formats that have minimums
    code: Callable[..., Any]  # (codes of the panel, run, input in it, half) -> f32x16, which the scale multiplies
    runs: int = 1  # of a block: 2 where groups have 16 inputs


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


def grouped_pieces(
    record: Record,
    *,
    block_bytes: int,
    make_dots: Callable[[int, int], Callable[..., Any]],
    code: Callable[..., Any],
    load: Callable[..., Any] = load_f16x16,
    size: int = 2,
) -> Pieces:
    """The pieces of formats with a scale, and maybe a minimum, per group of 2^group_shift blocks.

    They lie as [panel][group][32], `size` bytes each, those of one byte with room for an even number of groups; `load`
    takes 16 of them from an address as floats.
    """
    scales, group_shift = record.scales, record.group_shift
    has_minimums = "mins" in record.names
    mins = record.mins if has_minimums else record.scales

    @inlined
    def open_panel(weight: int, panel: int, blocks: int) -> Any:
        shift = load_i64(weight + group_shift)
        groups = blocks >> shift
        if size == 1:
            groups += groups & 1
        offset = panel * groups * 32 * size
        return load_i64(weight + scales) + offset, load_i64(weight + mins) + offset, shift

    @inlined
    def scale(at: Any, block: int, half: int) -> Any:
        return load(at[0] + ((block >> at[2]) * 32 + half * 16) * size)

    @inlined
    def minimum(at: Any, block: int, half: int) -> Any:
        return load(at[1] + ((block >> at[2]) * 32 + half * 16) * size)

    return Pieces(block_bytes, record.codes, make_dots, open_panel, scale, minimum if has_minimums else None, code)


def two_level_pieces(
    record: Record,
    *,
    block_bytes: int,
    make_dots: Callable[[int, int], Callable[..., Any]],
    code: Callable[..., Any],
    runs: int,
) -> Pieces:
    """The pieces of formats whose scales are an f16 per 256 inputs times an int8 per run.

    They lie as [panel][256 inputs or run][32]; what is subtracted, where there is that, likewise. Both products are
    exact: 11 bits times 8.
    """
    scales, steps, has_minimums = record.scales, record.steps, "mins" in record.names
    mins, min_steps = (record.mins, record.min_steps) if has_minimums else (scales, steps)
    shift = (8 * runs).bit_length() - 1  # of a run's number, for that of its 256 inputs
    minus_one = np.float32(-1)

    @inlined
    def open_panel(weight: int, panel: int, blocks: int) -> Any:
        first, second = panel * (blocks >> 3) * 64, panel * blocks * runs * 32
        return (
            load_i64(weight + scales) + first,
            load_i64(weight + steps) + second,
            load_i64(weight + mins) + first,
            load_i64(weight + min_steps) + second,
        )

    @inlined
    def scale(at: Any, run: int, half: int) -> Any:
        return load_f16x16(at[0] + (run >> shift) * 64 + half * 32) * load_i8x16(at[1] + run * 32 + half * 16)

    @inlined
    def minimum(at: Any, run: int, half: int) -> Any:
        size = load_f16x16(at[2] + (run >> shift) * 64 + half * 32) * load_i8x16(at[3] + run * 32 + half * 16)
        return size * splat_f32(minus_one)

    least = minimum if has_minimums else None
    return Pieces(block_bytes, record.codes, make_dots, open_panel, scale, least, code, runs)
