"""The layouts are what their byte pictures say, and packing loses nothing."""

import numpy as np
import pytest

from edgellm.kernels.layouts import (
    LAYOUTS,
    Layout,
    dequantize,
    pack_codes,
    pack_scales,
    padded_rows,
    unpack_codes,
    unpack_scales,
)

ROWS = [1, 16, 31, 32, 33, 100]


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_round_trip(layout: Layout, rows: int) -> None:
    rng = np.random.default_rng(rows)
    codes = rng.integers(0, 1 << layout.bits, (rows, 256), np.uint8)
    scales = rng.standard_normal((rows, 256 // layout.group)).astype(np.float16)
    packed, packed_scales = pack_codes(layout, codes), pack_scales(scales)
    assert packed.shape == layout.codes_shape(rows, 256)
    assert packed_scales.shape == layout.scales_shape(rows, 256)
    assert packed.nbytes % 64 == packed_scales.nbytes % 64 == 0
    bits = packed.nbytes * 8 + packed_scales.nbytes * 8 * (2 if layout.asymmetric else 1)
    assert bits == layout.bits_per_weight * padded_rows(rows) * 256
    np.testing.assert_array_equal(unpack_codes(layout, packed, rows), codes)
    np.testing.assert_array_equal(unpack_scales(packed_scales, rows), scales)


@pytest.mark.parametrize("layout", [LAYOUTS["int4-g32"], LAYOUTS["int4-asym-g64"], LAYOUTS["int8-g128"]])
def test_byte_picture(layout: Layout) -> None:
    """Every weight is where the docstring of `layouts` draws it."""
    rows, columns = 40, 256
    rng = np.random.default_rng(1)
    codes = rng.integers(0, 1 << layout.bits, (rows, columns), np.uint8)
    scales = rng.standard_normal((rows, columns // layout.group)).astype(np.float16)
    packed, packed_scales = pack_codes(layout, codes), pack_scales(scales)
    for row, column in zip(rng.integers(0, rows, 500), rng.integers(0, columns, 500), strict=True):
        block = np.split(packed[row // 32, column // 32], 2)[row % 32 // 16]
        within = column % 32
        if layout.bits == 8:
            code = block[within // 4 * 64 + row % 16 * 4 + within % 4]
        else:
            byte = block[within % 16 // 4 * 64 + row % 16 * 4 + within % 4]
            code = byte & 15 if within < 16 else byte >> 4
        assert code == codes[row, column]
        assert packed_scales[row // 32, column // layout.group, row % 32] == scales[row, column // layout.group]


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_dequantize(layout: Layout) -> None:
    rng = np.random.default_rng(2)
    codes = rng.integers(0, 1 << layout.bits, (33, 128), np.uint8)
    scales, mins = rng.standard_normal((2, 33, 128 // layout.group)).astype(np.float16)
    expected = np.empty((33, 128), np.float32)
    zero = {"int4": 8, "int4-asym": 0, "int8": 128}[layout.name.rsplit("-", 1)[0]]
    for row, column in np.ndindex(33, 128):
        group = column // layout.group
        expected[row, column] = np.float32(scales[row, group]) * np.float32(int(codes[row, column]) - zero)
        if layout.asymmetric:
            expected[row, column] += np.float32(mins[row, group])
    packed_mins = pack_scales(mins) if layout.asymmetric else None
    weights = dequantize(layout, pack_codes(layout, codes), pack_scales(scales), packed_mins, 33)
    np.testing.assert_array_equal(weights, expected)


def test_padded_rows_stand_for_zero() -> None:
    layout = LAYOUTS["int8-g32"]
    packed = pack_codes(layout, np.full((1, 32), 255, np.uint8))
    scales = pack_scales(np.ones((1, 1), np.float16))
    weights = dequantize(layout, packed, scales, None, 32)
    np.testing.assert_array_equal(weights, np.pad(np.full((1, 32), 127, np.float32), ((0, 31), (0, 0))))
    assert not unpack_scales(scales, 32)[1:].any()
