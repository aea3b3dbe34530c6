"""Weight formats: packing loses nothing, and encoding no more than the format says."""

import gguf
import numpy as np
import pytest

from edgellm.kernels.panels import padded_rows, unpack_per_row
from edgellm.kernels.quants import exact_quants, quants
from edgellm.kernels.quants.quant import GroupedQuant, Quant

ROWS = [1, 16, 31, 32, 33, 100]
EVERY_QUANT = pytest.mark.parametrize("quant", quants().values(), ids=quants())
ZERO_POINTS = {"int4": 8, "int4_asym": 0, "int8": 128}
GROUPED = [quant for quant in quants().values() if quant.unit in ZERO_POINTS]
EVERY_GROUPED = pytest.mark.parametrize("quant", GROUPED, ids=[quant.name for quant in GROUPED])


def random_weights(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Rows of different sizes."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((rows, columns)) * 10.0 ** rng.integers(-2, 3, (rows, 1))).astype(np.float32)


def test_names_are_one_formats_each() -> None:
    assert {name: quant.name for name, quant in quants().items()} == {name: name for name in quants()}
    assert {"int4-g32", "int4-asym-g64", "int8-g128"} <= set(quants())
    for kind, quant in exact_quants().items():
        assert kind in quant.exact


@EVERY_QUANT
@pytest.mark.parametrize("rows", ROWS)
def test_a_matrix_is_kept_in_the_parts_that_are_promised(quant: Quant, rows: int) -> None:
    parts, promised = quant.encode(random_weights(rows, 512)), quant.parts(rows, 512)
    assert list(parts) == list(promised)
    for name, part in parts.items():
        assert (part.dtype, part.shape) == (promised[name].dtype, promised[name].shape)
        assert part.nbytes % 64 == 0
    bits = 8 * sum(part.nbytes for part in parts.values())
    assert bits == quant.bits_per_weight * padded_rows(rows) * 512
    assert set(quant.record.names) == {"product", "row", *parts, *quant.numbers()}


@EVERY_QUANT
@pytest.mark.parametrize("rows", ROWS)
def test_encoding_rounds_to_the_codes_bits(quant: Quant, rows: int) -> None:
    """To a quarter of a group's largest weight with 4 bits, and half of that with every bit more, at the very most."""
    values = random_weights(rows, 512, seed=rows)
    found = quant.decode(quant.encode(values), rows)
    largest = np.abs(values).reshape(rows, -1, quant.group).max(-1).repeat(quant.group, axis=1)
    assert found.dtype == np.float32 and found.shape == values.shape
    assert (np.abs(found - values) <= largest * 2.0 ** (2 - quant.bits)).all()
    assert not np.array_equal(found, values)


@EVERY_QUANT
def test_zeros_stay_zero_and_so_do_rows_that_pad(quant: Quant) -> None:
    values = random_weights(3, 512)
    values[1] = 0.0
    found = quant.decode(quant.encode(values), 32)
    assert found[0].any() and found[2].any()
    assert not found[1].any() and not found[3:].any()


@EVERY_QUANT
def test_a_row_is_encoded_by_itself(quant: Quant) -> None:
    values = random_weights(40, 512)
    together = quant.decode(quant.encode(values), 40)
    for row in (0, 17, 39):
        assert np.array_equal(quant.decode(quant.encode(values[row : row + 1]), 1), together[row : row + 1])


@pytest.mark.parametrize(("kind", "quant"), exact_quants().items(), ids=exact_quants())
@np.errstate(invalid="ignore", over="ignore")
def test_foreign_types_are_held_exactly(kind: str, quant: Quant) -> None:
    """Random bytes, as GGUF's own package reads them; some of their scales are no numbers."""
    foreign = gguf.GGMLQuantizationType[kind]
    block, block_bytes = gguf.GGML_QUANT_SIZES[foreign]
    rows, columns = 40, 2 * max(block, quant.group)
    data = np.random.default_rng(0).integers(0, 256, (rows, columns // block * block_bytes)).astype(np.uint8)
    expected = gguf.quants.dequantize(data, foreign)
    assert np.isfinite(expected).mean() > 0.5
    np.testing.assert_array_equal(quant.decode(quant.exact[kind](data), rows), expected)


# Those that are a code and a scale, and perhaps a minimum


@EVERY_GROUPED
@pytest.mark.parametrize("rows", ROWS)
def test_codes_and_scales_come_back(quant: GroupedQuant, rows: int) -> None:
    codes, scales, mins = random_codes(quant, rows, 256)
    parts = quant.pack(codes, scales, mins)
    np.testing.assert_array_equal(quant.unpack_codes(parts["codes"], rows), codes)
    np.testing.assert_array_equal(unpack_per_row(parts["scales"], rows), scales)
    assert (mins is not None) == ("mins" in parts)
    if mins is not None:
        np.testing.assert_array_equal(unpack_per_row(parts["mins"], rows), mins)


@EVERY_GROUPED
def test_a_weight_is_scale_times_code_and_minimum(quant: GroupedQuant) -> None:
    codes, scales, mins = random_codes(quant, 33, 128)
    expected = np.empty((33, 128), np.float32)
    for row, column in np.ndindex(33, 128):
        group, code = column // quant.group, int(codes[row, column]) - ZERO_POINTS[quant.unit]
        expected[row, column] = np.float32(scales[row, group]) * np.float32(code)
        if mins is not None:
            expected[row, column] += np.float32(mins[row, group])
    np.testing.assert_array_equal(quant.decode(quant.pack(codes, scales, mins), 33), expected)


@EVERY_GROUPED
def test_what_was_encoded_is_encoded_to_the_same_bytes(quant: GroupedQuant) -> None:
    parts = quant.encode(random_weights(40, 256))
    again = quant.encode(quant.decode(parts, 40))
    for name, part in parts.items():
        np.testing.assert_array_equal(again[name], part)


def random_codes(quant: GroupedQuant, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    rng = np.random.default_rng(rows)
    codes = rng.integers(0, 1 << quant.bits, (rows, columns), np.uint8)
    scales, mins = rng.standard_normal((2, rows, columns // quant.group)).astype(np.float16)
    return codes, scales, mins if quant.has_minimums else None
