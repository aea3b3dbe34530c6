"""Panels are what their byte pictures say, and packing loses nothing."""

import numpy as np
import pytest

from edgellm.kernels import panels

ROWS = [1, 16, 31, 32, 33, 100]
PACK = {4: panels.pack_nibbles, 8: panels.pack_bytes}
UNPACK = {4: panels.unpack_nibbles, 8: panels.unpack_bytes}


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("bits", PACK)
def test_codes_come_back(bits: int, rows: int) -> None:
    codes = np.random.default_rng(rows).integers(0, 1 << bits, (rows, 256), np.uint8)
    packed = PACK[bits](codes, 0)
    assert packed.shape == (panels.padded_rows(rows) // 32, 256 // 32, 32 * 32 * bits // 8)
    np.testing.assert_array_equal(UNPACK[bits](packed, rows), codes)


@pytest.mark.parametrize("bits", PACK)
def test_rows_that_pad_hold_the_filling(bits: int) -> None:
    packed = PACK[bits](np.ones((3, 64), np.uint8), 7)
    np.testing.assert_array_equal(UNPACK[bits](packed, 32), np.repeat([[1], [7]], [3, 29], axis=0) * np.ones((1, 64)))


@pytest.mark.parametrize("rows", ROWS)
def test_what_there_is_for_a_row_and_group_comes_back(rows: int) -> None:
    values = np.random.default_rng(rows).standard_normal((rows, 6)).astype(np.float16)
    packed = panels.pack_per_row(values)
    assert packed.shape == (panels.padded_rows(rows) // 32, 6, 32)
    np.testing.assert_array_equal(panels.unpack_per_row(packed, rows), values)
    assert not panels.unpack_per_row(packed, panels.padded_rows(rows))[rows:].any()


@pytest.mark.parametrize("bits", PACK)
def test_byte_picture(bits: int) -> None:
    """Every code, and all there is for a row and group, is where the docstring of `panels` draws it."""
    rows, columns, group = 40, 256, 64
    rng = np.random.default_rng(1)
    codes = rng.integers(0, 1 << bits, (rows, columns), np.uint8)
    scales = rng.standard_normal((rows, columns // group)).astype(np.float16)
    packed, packed_scales = PACK[bits](codes, 0), panels.pack_per_row(scales)
    for row, column in zip(rng.integers(0, rows, 500), rng.integers(0, columns, 500), strict=True):
        block = np.split(packed[row // 32, column // 32], 2)[row % 32 // 16]
        within = column % 32
        if bits == 8:
            code = block[within // 4 * 64 + row % 16 * 4 + within % 4]
        else:
            byte = block[within % 16 // 4 * 64 + row % 16 * 4 + within % 4]
            code = byte & 15 if within < 16 else byte >> 4
        assert code == codes[row, column]
        assert packed_scales[row // 32, column // group, row % 32] == scales[row, column // group]
