"""Weight formats of the GGUF kind: exact where they say so, and with the same bits from every kernel."""

from pathlib import Path

import gguf.quants
import numpy as np
import pytest
from gguf import GGMLQuantizationType

from edgellm.kernels import jit, reference
from edgellm.kernels.quants import exact_quants, quants
from edgellm.kernels.quants.codebook import NF4_TABLE
from edgellm.kernels.quants.quant import Parts, Quant
from edgellm.kernels.targets import host_target
from edgellm.kernels.units import CORE, weight_unit
from tests.kernels.blocks import GGUF_TYPES, random_blocks
from tests.kernels.products import Floats, Matrix

ROWS, COLUMNS = 80, 512  # two panels and a half
NAMES = ("q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs", "mxfp4", "nf4")
UNITS = (CORE, *(weight_unit(unit) for unit in dict.fromkeys(quants()[name].unit for name in NAMES)))
COUNTS = (1, 2, 3, 7, 12, 13, 26)  # rows of activations: every height of tiles
ULP = float(np.finfo(np.float32).eps)


@pytest.fixture(scope="module", params=host_target().levels)
def kernels(request: pytest.FixtureRequest, kernel_cache: Path) -> jit.Library:
    return jit.load(kernel_cache, UNITS, isa=request.param)


@pytest.fixture(scope="module")
def best(kernel_cache: Path) -> jit.Library:
    return jit.load(kernel_cache, UNITS)


def random_parts(quant: Quant, seed: int = 0) -> Parts:
    """Of a foreign type, which uses all that a format has, or rounded where there is none."""
    rng = np.random.default_rng(seed)
    if not quant.exact:
        return quant.encode(rng.standard_normal((ROWS, COLUMNS)).astype(np.float32))
    kind, transcode = next(iter(quant.exact.items()))
    return transcode(random_blocks(kind, ROWS, COLUMNS, rng))


def random_rows(count: int) -> Floats:
    """With heavy tails: outliers in most blocks."""
    return (np.random.default_rng(count).standard_normal((count, COLUMNS)) ** 3).astype(np.float32)


@pytest.mark.parametrize("kind", GGUF_TYPES)
def test_codes_of_gguf_are_kept_bit_for_bit(kind: str) -> None:
    blocks = random_blocks(kind, ROWS, COLUMNS, np.random.default_rng(1))
    quant = exact_quants()[kind]
    parts = quant.exact[kind](blocks)
    specs = quant.parts(ROWS, COLUMNS)
    assert {name: (part.dtype, part.shape) for name, part in parts.items()} == {
        name: (np.dtype(spec.dtype), spec.shape) for name, spec in specs.items()
    }
    found, expected = quant.decode(parts, ROWS), gguf.quants.dequantize(blocks, GGMLQuantizationType[kind])
    np.testing.assert_array_equal(found, expected, strict=True)


@pytest.mark.parametrize("name", NAMES)
def test_bits_per_weight_count_all_parts(name: str) -> None:
    parts = quants()[name].parts(64, COLUMNS).values()
    bits = sum(8 * np.dtype(spec.dtype).itemsize * np.prod(spec.shape) for spec in parts)
    assert bits == quants()[name].bits_per_weight * 64 * COLUMNS


@pytest.mark.parametrize("name", NAMES)
def test_products_equal_the_reference(kernels: jit.Library, name: str) -> None:
    quant = quants()[name]
    matrix = Matrix(kernels, quant, random_parts(quant), ROWS, COLUMNS)
    for count in COUNTS:
        x = random_rows(count)
        found, exact = matrix.times(x)[:, :ROWS], reference.matmul(x, matrix.dense)
        # A run is exact but for the rounding of its scale; minimums make terms larger than their sum.
        terms = np.abs(reference.dequantize(*reference.quantize(x))) @ (np.abs(matrix.dense) + peaks(matrix.dense)).T
        error, limit = np.abs(found - exact), terms * 8 * ULP
        worst = np.unravel_index(np.argmax(error / limit), exact.shape)
        assert (error <= limit).all(), (count, worst, found[worst], exact[worst], limit[worst])


def peaks(dense: Floats) -> Floats:
    """The largest magnitude of each 32 weights, [N][C]."""
    groups = np.abs(dense).reshape(len(dense), -1, 32)
    return np.broadcast_to(groups.max(axis=2, keepdims=True), groups.shape).reshape(dense.shape)


@pytest.mark.parametrize("name", NAMES)
def test_bits_depend_on_no_tile_and_no_instruction_set(kernels: jit.Library, best: jit.Library, name: str) -> None:
    quant = quants()[name]
    parts = random_parts(quant)
    x = random_rows(26)
    expected = Matrix(best, quant, parts, ROWS, COLUMNS).times(x)
    assert not expected[:, ROWS:].any(), "rows that pad a panel are zero"
    matrix = Matrix(kernels, quant, parts, ROWS, COLUMNS)
    for count in COUNTS:
        np.testing.assert_array_equal(matrix.times(x[:count]), expected[:count])


@pytest.mark.parametrize("name", NAMES)
def test_an_embedding_is_a_row_of_the_matrix(kernels: jit.Library, name: str) -> None:
    quant = quants()[name]
    matrix = Matrix(kernels, quant, random_parts(quant), ROWS, COLUMNS)
    tokens = [0, 17, 31, 32, 48, ROWS - 1]
    np.testing.assert_array_equal(matrix.embedded(tokens), matrix.dense[tokens])


# Root mean square of the error on normal weights, by that of the weights
ERRORS = {"q4_k": 0.080, "q5_k": 0.040, "q6_k": 0.020, "iq4_nl": 0.082, "iq4_xs": 0.082, "mxfp4": 0.118, "nf4": 0.096}


@pytest.mark.parametrize("name", NAMES)
def test_encoding_loses_little(name: str) -> None:
    values = np.random.default_rng(0).standard_normal((ROWS, COLUMNS)).astype(np.float32)
    values[3] = 0
    values[4, :64] = 5.0
    quant = quants()[name]
    found = quant.decode(quant.encode(values), ROWS)
    assert not found[3].any()
    error = found - values
    assert ERRORS[name] * 0.8 < np.sqrt(np.mean(error**2) / np.mean(values**2)) < ERRORS[name]
    again = quant.decode(quant.encode(found), ROWS) - found
    assert np.sqrt(np.mean(again**2)) < np.sqrt(np.mean(error**2)) * 0.8


@pytest.mark.parametrize("name", NAMES)
def test_other_columns_get_a_format_that_fits(name: str) -> None:
    for columns in (32, 64, 96, 256, 320, 576, 1024):
        fitting = quants()[name].fitting(columns)
        assert columns % fitting.group == 0 and fitting.bits >= quants()[name].bits
        assert quants()[fitting.name] == fitting
    assert quants()[name].fitting(1024).name == name


def test_all_exponents_of_mxfp4_are_kept(kernels: jit.Library) -> None:
    """Subnormal scales too, and 2^127: a row of the matrix for each of e8m0's 255 numbers."""
    blocks = random_blocks("MXFP4", 255, 32, np.random.default_rng(0)).reshape(255, 17)
    blocks[:, 0] = np.arange(255)
    blocks[-4:, 1:] &= 0x33  # 3 * 2^126 is the largest that a float32 has
    quant = quants()["mxfp4"]
    matrix = Matrix(kernels, quant, quant.exact["MXFP4"](blocks), 255, 32)
    expected = gguf.quants.dequantize(blocks, GGMLQuantizationType.MXFP4)
    np.testing.assert_array_equal(matrix.dense, expected, strict=True)
    np.testing.assert_array_equal(matrix.embedded(list(range(255))), expected)


def test_nf4_is_within_its_bound_of_normal_float() -> None:
    """Of bitsandbytes' table times the largest magnitude of 64 weights, 2^-15 of that."""
    values = np.random.default_rng(0).standard_normal((ROWS, COLUMNS)).astype(np.float32)
    quant = quants()["nf4"]
    found = quant.decode(quant.encode(values), ROWS).reshape(ROWS, -1, 64)
    largest = np.abs(values).reshape(found.shape).max(axis=2, keepdims=True)
    error = np.abs((found / largest)[..., None] - np.array(NF4_TABLE)).min(axis=3)
    assert 0 < error.max() <= 2.0**-15 + 2 * ULP


def test_an_odd_number_of_blocks(best: jit.Library) -> None:
    """MXFP4 has 32 bytes of scales for each, and parts of files begin at multiples of 64."""
    quant = quants()["mxfp4"]
    parts = quant.exact["MXFP4"](random_blocks("MXFP4", ROWS, 96, np.random.default_rng(0)))
    assert {name: part.shape for name, part in parts.items()} == {
        name: spec.shape for name, spec in quant.parts(ROWS, 96).items()
    }
    assert all(part.nbytes % 64 == 0 for part in parts.values())
    matrix, x = Matrix(best, quant, parts, ROWS, 96), random_rows(3)[:, :96]
    np.testing.assert_allclose(matrix.times(x)[:, :ROWS], reference.matmul(x, matrix.dense), rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(matrix.embedded([0, 79]), matrix.dense[[0, 79]])
