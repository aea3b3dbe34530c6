"""Each kernel against its plain NumPy twin in reference.py."""

import numpy as np
import pytest

from edgellm.backends.cpu.lower import float_bits
from edgellm.kernels import ops, reference
from edgellm.kernels.jit import Library
from edgellm.kernels.panels import padded_rows
from edgellm.kernels.quants import quants
from edgellm.kernels.quants.quant import Quant
from edgellm.memory.buffers import address, aligned_zeros
from tests.kernels.rig import Activation, QuantizedMatrix, Rig, read_activation, read_codes

EPSILON = 1e-5
ULP = float(np.finfo(np.float32).eps)
EVERY_QUANT = pytest.mark.parametrize("quant", quants().values(), ids=quants())
INT4, INT8 = quants()["int4-g32"], quants()["int8-g32"]


def heights_of(rows: int, library: Library) -> tuple[int, ...]:
    """Tile heights as ops.py describes them."""
    possible = library.target.heights
    heights, left = [], rows
    while left > 0:
        heights.append(next((height for height in possible if height >= left), possible[-1]))
        left -= heights[-1]
    return tuple(heights)


def run_norm(
    library: Library, x: np.ndarray, weight: np.ndarray, threads: int = 1, epsilon: float = EPSILON
) -> tuple[Rig, Activation]:
    rows, width = x.shape
    rig, out = Rig(library, np.arange(rows, dtype=np.int32), threads), Activation(rows, width)
    rig.run(
        "norm",
        ops.NORM,
        x=address(x),
        weight=address(weight),
        out_codes=address(out.codes),
        out_meta=address(out.meta),
        own_codes=0,
        own_meta=0,
        width=width,
        epsilon=float_bits(epsilon),
        selected=0,
    )
    return rig, out


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 6, 13])
def test_norm_quantizes_the_normalized_rows(library: Library, rows: int) -> None:
    rng = np.random.default_rng(rows)
    x = (rng.standard_normal((rows, 96)) * 10).astype(np.float32)
    weight = rng.uniform(0.5, 1.5, 96).astype(np.float32)
    _, out = run_norm(library, x, weight)
    found = read_activation(out, rows, 96, heights_of(rows, library))
    exact = reference.norm(x, weight, EPSILON)
    assert_quantized(found, exact)


def assert_quantized(
    found: np.ndarray, exact: np.ndarray, slack: np.ndarray | float = 0.0, may_be_exact: bool = False
) -> None:
    """Every value lies within half a step of its block, and what floats lose on the way, and the slack."""
    steps = np.repeat(reference.quantize(exact)[1], 32, axis=1)
    limit = steps * 0.5 + np.abs(exact).reshape(len(exact), -1, 32).max(-1).repeat(32, axis=1) * 16 * ULP + slack
    error = np.abs(found - exact)
    worst = np.unravel_index(np.argmax(error / limit), exact.shape)
    assert (error <= limit).all(), (worst, found[worst], exact[worst])
    assert may_be_exact or error.max() > 0, "nothing was rounded: the comparison sees the same array twice"


def test_an_outlier_keeps_its_block_fine(library: Library) -> None:
    """One value 50 times the others costs them no precision; two of them do."""
    rng = np.random.default_rng(0)
    x = rng.uniform(0.5, 1.0, (9, 64)).astype(np.float32) * rng.choice([-1, 1], (9, 64)).astype(np.float32)
    x[np.arange(9), rng.integers(0, 32, 9)] = 50.0
    x[:, 40] = x[:, 50] = -50.0
    _, out = run_norm(library, x, np.ones(64, np.float32))
    found, exact = read_activation(out, 9, 64, heights_of(9, library)), reference.norm(x, np.ones(64), EPSILON)
    error = np.abs(found - exact) / np.sqrt((exact / x) ** 2)
    assert error[:, :32].max() < 0.5 / 127 + 1e-5 < error[:, 32:].max()
    assert_quantized(found, exact)


def test_a_block_of_zeros_stays_zero(library: Library) -> None:
    x, weight = np.zeros((1, 64), np.float32), np.ones(64, np.float32)
    x[0, 40] = 2.0
    _, out = run_norm(library, x, weight)
    found = read_activation(out, 1, 64, (1,))
    assert not found[0, :32].any()
    assert found[0, 40] == pytest.approx(2 / np.sqrt(4 / 64 + EPSILON))


def run_quantize(
    library: Library, x: np.ndarray, *, threads: int = 1, logit_rows: list[int] | None = None
) -> Activation:
    """All rows, or those whose logits are wanted."""
    rig = Rig(library, np.arange(len(x), dtype=np.int32), threads)
    selected = rig.keep(np.array(logit_rows or [], np.int32))
    rig.words |= {"logit_count": len(selected), "logit_rows": address(selected)}
    out = Activation(len(x) if logit_rows is None else len(selected), x.shape[1])
    rig.run(
        "quantize",
        ops.QUANTIZE,
        x=address(x),
        out_codes=address(out.codes),
        out_meta=address(out.meta),
        width=x.shape[1],
        selected=int(logit_rows is not None),
    )
    return out


@pytest.mark.parametrize("rows", [1, 2, 5, 13])
def test_quantize_is_the_references(library: Library, rows: int) -> None:
    x = (np.random.default_rng(rows).standard_normal((rows, 128)) ** 3).astype(np.float32)  # outliers in most blocks
    x[:, 32:64] = 0.0
    expected, expected_scales = reference.quantize(x)
    assert np.abs(expected).max() > 127
    for threads in (1, 3):
        codes, scales = read_codes(run_quantize(library, x, threads=threads), rows, 128, heights_of(rows, library))
        assert np.array_equal(codes, expected)
        assert np.array_equal(scales, expected_scales)


def test_quantize_takes_the_rows_whose_logits_are_wanted(library: Library) -> None:
    x = np.random.default_rng(0).standard_normal((7, 64)).astype(np.float32)
    found, expected = run_quantize(library, x, logit_rows=[1, 4, 6]), run_quantize(library, x[[1, 4, 6]])
    assert_same_bytes(found, expected)


@pytest.mark.parametrize("rows", [1, 2, 5, 13])
def test_quantized_with_the_norm_or_behind_it_the_bytes_are_the_same(library: Library, rows: int) -> None:
    """Of rows whose norm is exact: their entries are a power of two, or its negative."""
    rng = np.random.default_rng(rows)
    signs = rng.choice([-1, 1], (rows, 128)).astype(np.float32)
    weight = (rng.standard_normal(128) ** 3).astype(np.float32)
    x = signs * np.float32(2) ** rng.integers(-5, 5, (rows, 1)).astype(np.float32)
    _, fused = run_norm(library, x, weight, epsilon=0.0)
    assert_same_bytes(run_quantize(library, signs * weight), fused)


def assert_same_bytes(found: Activation, expected: Activation) -> None:
    assert np.array_equal(found.codes, expected.codes)
    assert np.array_equal(found.meta.view(np.int32), expected.meta.view(np.int32))


@EVERY_QUANT
@pytest.mark.parametrize("rows", [1, 2, 4, 6, 11])
def test_matmul_equals_the_product_of_what_is_stored(library: Library, quant: Quant, rows: int) -> None:
    rng = np.random.default_rng(rows)
    x = (rng.standard_normal((rows, 256)) ** 3).astype(np.float32)  # heavy tails: outliers in most blocks
    weight = QuantizedMatrix(quant, 80, 256, seed=rows)
    rig, activation = run_norm(library, x, np.ones(256, np.float32), threads=3)
    out = aligned_zeros((rows, padded_rows(80)), np.float32)
    run_matmul(rig, activation, weight, out)
    inputs = read_activation(activation, rows, 256, heights_of(rows, library)).astype(np.float64)
    exact = inputs @ weight.dense.T.astype(np.float64)
    # A block is exact but for the roundings of its scales and sum; there are 8 blocks. A minimum, which codes make up
    # for, is no larger than the largest weight.
    largest = np.abs(weight.dense).max(-1, keepdims=True)
    limit = np.abs(inputs) @ (np.abs(weight.dense) + largest).T * 8 * ULP
    error = np.abs(out[:, :80] - exact)
    worst = np.unravel_index(np.argmax(error / limit), exact.shape)
    assert (error <= limit).all(), (worst, out[worst], exact[worst], limit[worst])
    assert not out[:, 80:].any()


def run_matmul(
    rig: Rig, activation: Activation, weight: QuantizedMatrix, out: np.ndarray, epilogue: str = "store"
) -> None:
    """Into floats [R][..]."""
    rig.product(activation, weight, epilogue, out=address(out), stride=out.shape[-1])


@EVERY_QUANT
def test_one_row_alone_has_the_bits_it_has_among_many(library: Library, quant: Quant) -> None:
    columns = max(128, quant.group)
    x = np.random.default_rng(0).standard_normal((13, columns)).astype(np.float32)
    weight = QuantizedMatrix(quant, 64, columns, seed=1)
    together = aligned_zeros((13, 64), np.float32)
    rig, activation = run_norm(library, x, np.ones(columns, np.float32))
    run_matmul(rig, activation, weight, together)
    for row in range(13):
        alone = aligned_zeros((1, 64), np.float32)
        rig, activation = run_norm(library, np.ascontiguousarray(x[row : row + 1]), np.ones(columns, np.float32))
        run_matmul(rig, activation, weight, alone)
        assert np.array_equal(alone[0], together[row]), row


def test_add_epilogue_adds(library: Library) -> None:
    x = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)
    weight = QuantizedMatrix(INT8, 64, 64, seed=1)
    product, total = aligned_zeros((3, 64), np.float32), aligned_zeros((3, 64), np.float32)
    total[:] = 100.0
    rig, activation = run_norm(library, x, np.ones(64, np.float32))
    run_matmul(rig, activation, weight, product)
    run_matmul(rig, activation, weight, total, "add")
    assert np.array_equal(total, product + np.float32(100))


def test_swiglu_epilogue_gates_and_quantizes(library: Library) -> None:
    """The two weights in two formats."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((7, 64)).astype(np.float32)
    gate, up = (QuantizedMatrix(quant, 96, 64, seed=seed) for seed, quant in enumerate((INT4, INT8)))
    rig, activation = run_norm(library, x, np.ones(64, np.float32), threads=2)
    products = []
    for weight in (gate, up):
        products.append(aligned_zeros((7, 96), np.float32))
        run_matmul(rig, activation, weight, products[-1])
    out = Activation(7, 96)
    operands = {"out_codes": address(out.codes), "out_meta": address(out.meta), "stride": 96}
    rig.product(activation, gate, "swiglu", second=up, **operands)
    found = read_activation(out, 7, 96, heights_of(7, library))
    assert_quantized(found, reference.silu(products[0]) * products[1])


@EVERY_QUANT
def test_embed_is_the_row_of_the_matrix(library: Library, quant: Quant) -> None:
    columns = max(64, quant.group)
    weight = QuantizedMatrix(quant, 50, columns, seed=3)
    tokens = np.array([0, 49, 17, 17], np.int32)
    rig, out = Rig(library, np.arange(4, dtype=np.int32), threads=3), aligned_zeros((4, columns), np.float32)
    rig.words["tokens"] = address(tokens)
    rig.run("embed", ops.EMBED, out=address(out), weight=rig.weight(weight), width=columns)
    assert np.array_equal(out, reference.embed(weight.dense, tokens))
