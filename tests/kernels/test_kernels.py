"""Each kernel against its plain NumPy twin in reference.py."""

import numpy as np
import pytest

from edgellm.kernels import ops, reference
from edgellm.kernels.jit import Library
from edgellm.kernels.layouts import LAYOUTS, Layout, padded_rows
from edgellm.memory.buffers import address, aligned_zeros
from edgellm.model.program import Activation, float_bits
from tests.kernels.rig import QuantizedMatrix, Rig, read_activation, used_activation

EPSILON = 1e-5
ULP = float(np.finfo(np.float32).eps)


def heights_of(rows: int, library: Library) -> tuple[int, ...]:
    """Tile heights as ops.py describes them."""
    possible = library.target.heights
    heights, left = [], rows
    while left > 0:
        heights.append(next((height for height in possible if height >= left), possible[-1]))
        left -= heights[-1]
    return tuple(heights)


def run_norm(library: Library, x: np.ndarray, weight: np.ndarray, threads: int = 1) -> tuple[Rig, Activation]:
    rows, width = x.shape
    rig, out = Rig(library, np.arange(rows, dtype=np.int32), threads), used_activation(rows, width)
    record = ops.NORM.pack(
        **rig.head("norm"),
        x=address(x),
        weight=address(weight),
        out_codes=address(out.codes),
        out_meta=address(out.meta),
        own_codes=0,
        own_meta=0,
        width=width,
        epsilon=float_bits(EPSILON),
        selected=0,
    )
    rig.run("norm", record)
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


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("rows", [1, 2, 4, 6, 11])
def test_matmul_equals_the_product_of_what_is_stored(library: Library, layout: Layout, rows: int) -> None:
    rng = np.random.default_rng(rows)
    x = (rng.standard_normal((rows, 256)) ** 3).astype(np.float32)  # heavy tails: outliers in most blocks
    weight = QuantizedMatrix(layout, 80, 256, seed=rows)
    rig, activation = run_norm(library, x, np.ones(256, np.float32), threads=3)
    out = aligned_zeros((rows, padded_rows(80)), np.float32)
    run_matmul(rig, activation, weight, ops.STORE, out)
    inputs = read_activation(activation, rows, 256, heights_of(rows, library)).astype(np.float64)
    exact = inputs @ weight.dense.T.astype(np.float64)
    # A block is exact but for the roundings of its scales and sum; there are 8 blocks, and minimums double them.
    limit = (np.abs(inputs) @ np.abs(weight.dense.T) + np.abs(inputs) @ np.full((256, 80), 2.56)) * 8 * ULP
    error = np.abs(out[:, :80] - exact)
    worst = np.unravel_index(np.argmax(error / limit), exact.shape)
    assert (error <= limit).all(), (worst, out[worst], exact[worst], limit[worst])
    assert not out[:, 80:].any()


def run_matmul(
    rig: Rig, activation: Activation, weight: QuantizedMatrix, epilogue: int, out: np.ndarray, **more: int
) -> None:
    part = dict.fromkeys(ops.PART.names, 0) | weight.words() | more
    part |= {
        "panels": padded_rows(weight.rows) // 32,
        "epilogue": epilogue,
        "out": address(out),
        "stride": out.shape[-1],
    }
    parts = rig.keep(ops.PART.pack(**part)[None])
    record = ops.MATMUL.pack(
        **rig.head("matmul"),
        parts=address(parts),
        part_count=1,
        codes=address(activation.codes),
        meta=address(activation.meta),
        own_codes=0,
        own_meta=0,
        columns=weight.columns,
        selected=0,
        scratch=address(rig.scratch),
        scratch_stride=1 << 20,
        outliers=address(rig.outliers),
        outliers_stride=1 << 20,
    )
    rig.run("matmul", record)


def test_one_row_alone_has_the_bits_it_has_among_many(library: Library) -> None:
    x = np.random.default_rng(0).standard_normal((13, 128)).astype(np.float32)
    for layout in LAYOUTS.values():
        weight = QuantizedMatrix(layout, 64, 128, seed=1)
        together = aligned_zeros((13, 64), np.float32)
        rig, activation = run_norm(library, x, np.ones(128, np.float32))
        run_matmul(rig, activation, weight, ops.STORE, together)
        for row in range(13):
            alone = aligned_zeros((1, 64), np.float32)
            rig, activation = run_norm(library, np.ascontiguousarray(x[row : row + 1]), np.ones(128, np.float32))
            run_matmul(rig, activation, weight, ops.STORE, alone)
            assert np.array_equal(alone[0], together[row]), (layout.name, row)


def test_add_epilogue_adds(library: Library) -> None:
    x = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)
    weight = QuantizedMatrix(LAYOUTS["int8-g32"], 64, 64, seed=1)
    product, total = aligned_zeros((3, 64), np.float32), aligned_zeros((3, 64), np.float32)
    total[:] = 100.0
    rig, activation = run_norm(library, x, np.ones(64, np.float32))
    run_matmul(rig, activation, weight, ops.STORE, product)
    run_matmul(rig, activation, weight, ops.ADD, total)
    assert np.array_equal(total, product + np.float32(100))


def test_swiglu_epilogue_gates_and_quantizes(library: Library) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((7, 64)).astype(np.float32)
    gate, up = (QuantizedMatrix(LAYOUTS["int4-g32"], 96, 64, seed=seed) for seed in (1, 2))
    rig, activation = run_norm(library, x, np.ones(64, np.float32), threads=2)
    products = []
    for weight in (gate, up):
        products.append(aligned_zeros((7, 96), np.float32))
        run_matmul(rig, activation, weight, ops.STORE, products[-1])
    out = used_activation(7, 96)
    codes = out.codes[: 7 * 96].reshape(7, 96)
    run_matmul(rig, activation, gate, ops.SWIGLU, codes, out_meta=address(out.meta), **up.words("up_"))
    found = read_activation(out, 7, 96, heights_of(7, library))
    assert_quantized(found, reference.silu(products[0]) * products[1])


@pytest.mark.parametrize("layout", ["int4-g32", "int4-asym-g64", "int8-g32"])
def test_embed_is_the_row_of_the_matrix(library: Library, layout: str) -> None:
    weight = QuantizedMatrix(LAYOUTS[layout], 50, 64, seed=3)
    tokens = np.array([0, 49, 17, 17], np.int32)
    rig, out = Rig(library, np.arange(4, dtype=np.int32), threads=3), aligned_zeros((4, 64), np.float32)
    rig.words["tokens"] = address(tokens)
    rig.run("embed", ops.EMBED.pack(**rig.head("embed"), out=address(out), width=64, **weight.words()))
    assert np.array_equal(out, reference.embed(weight.dense, tokens))
