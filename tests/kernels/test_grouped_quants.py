"""Formats with a scale per group: codes that fit are kept bit for bit, all others rounded as well as the format can."""

import gguf.quants
import numpy as np
import pytest
from gguf import GGMLQuantizationType as GGMLType

from edgellm.kernels.panels import unpack_per_row
from edgellm.kernels.quants import exact_quants, quants
from edgellm.kernels.quants.quant import GroupedQuant, Parts

BLOCK_BYTES = {GGMLType.Q8_0: 34, GGMLType.Q4_0: 18, GGMLType.Q4_1: 20}


def random_blocks(kind: GGMLType, rows: int, blocks: int, seed: int) -> np.ndarray:
    """Blocks of every bit pattern, scales and minimums of every finite f16: zero, subnormal, negative, largest."""
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 256, (rows, blocks, BLOCK_BYTES[kind]), np.uint8)
    for begin in (0, 2) if kind == GGMLType.Q4_1 else (0,):
        numbers = rng.integers(0, 0x7C00, (rows, blocks), np.uint16) | rng.choice([0, 0x8000], (rows, blocks))
        numbers[0, :6] = [0, 0x8000, 1, 0x8001, 0x7BFF, 0xFBFF]
        data[:, :, begin : begin + 2] = numbers.astype("<u2").view(np.uint8).reshape(rows, blocks, 2)
    return data.reshape(rows, -1)


QUANTS = {name: quant for name, quant in quants().items() if isinstance(quant, GroupedQuant)}


def rounded(values: np.ndarray, quant: GroupedQuant) -> np.ndarray:
    return quant.decode(quant.encode(values), len(values))


def steps(parts: Parts, quant: GroupedQuant, rows: int) -> np.ndarray:
    """The size of every weight's step, [N][C]."""
    return np.repeat(np.abs(unpack_per_row(parts["scales"], rows).astype(np.float64)), quant.group, axis=1)


def is_finite(parts: Parts) -> bool:
    return all(np.isfinite(part).all() for part in parts.values())


@pytest.mark.parametrize("kind", BLOCK_BYTES)
def test_transcoding_is_exact(kind: GGMLType) -> None:
    blocks = random_blocks(kind, 70, 9, seed=kind)
    expected = gguf.quants.dequantize(blocks, kind)
    assert np.isfinite(expected).all()
    quant = exact_quants()[kind.name]
    found = quant.exact[kind.name](blocks)
    np.testing.assert_array_equal(quant.decode(found, 70), expected)
    scales = np.ascontiguousarray(blocks.reshape(70, 9, -1)[:, :, :2]).view(np.uint16)[:, :, 0]
    np.testing.assert_array_equal(
        unpack_per_row(found["scales"], 70).view(np.uint16), scales
    )  # the sign of a zero scale too


@pytest.mark.parametrize("quant", QUANTS.values(), ids=QUANTS)
def test_rounding_is_to_the_nearest_code(quant: GroupedQuant) -> None:
    values = np.random.default_rng(4).standard_normal((50, 256)).astype(np.float32)
    found = quant.encode(values)
    step = steps(found, quant, 50)
    error = np.abs(quant.decode(found, 50) - values)
    # Half a step; at the ends of the range one f16 rounding of scale (and minimum) more: 2**-11 of up to 127 steps.
    # int4 has one code less on one side: a value near the opposite of the peak may miss by a whole step.
    allowed = step * (0.5 + 2**-11 * 128 + (0.51 if quant.name.startswith("int4-g") else 0))
    worst = np.unravel_index((error - allowed).argmax(), error.shape)
    assert error[worst] <= allowed[worst], worst


@pytest.mark.parametrize("quant", QUANTS.values(), ids=QUANTS)
def test_error_is_what_theory_says(quant: GroupedQuant) -> None:
    """Normal weights, rounded uniformly: the error's RMS is step / sqrt(12)."""
    values = np.random.default_rng(5).standard_normal((200, 512)).astype(np.float32)
    found = quant.encode(values)
    step = steps(found, quant, 200)
    rms = np.sqrt(np.square(quant.decode(found, 200) - values, dtype=np.float64).mean())
    assert rms == pytest.approx(np.sqrt(np.square(step).mean() / 12), rel=0.05)


@pytest.mark.parametrize(
    ("layout", "codes"),
    [("int8-g32", np.arange(-127, 128)), ("int4-g32", np.arange(-8, 8)), ("int4-asym-g32", range(16))],
)
def test_a_grid_is_found_again(layout: str, codes: np.ndarray) -> None:
    """Weights on the layout's own grid come back exactly."""
    rng = np.random.default_rng(6)
    grid = rng.choice(codes, (64, 4, 32)).astype(np.float32)
    grid[:, :, 0], grid[:, :, 1] = min(codes), max(codes)
    values = grid * 2.0 ** rng.integers(-8, 8, (64, 4, 1)).astype(np.float32)
    if QUANTS[layout].has_minimums:
        values += values[:, :, 1:2] * 2
    values = values.reshape(64, 128)
    np.testing.assert_array_equal(rounded(values, QUANTS[layout]), values)


@pytest.mark.parametrize("quant", QUANTS.values(), ids=QUANTS)
@pytest.mark.parametrize("value", [0.0, 1e-12, -1e-12, 3.0, -3.0])
def test_constant_rows(quant: GroupedQuant, value: float) -> None:
    """Nothing divides by zero; a constant is stored to f16's accuracy (and what f16 cannot hold is zero)."""
    values = np.full((3, 256), value, np.float32)
    weights = rounded(values, quant)
    np.testing.assert_allclose(weights, 0.0 if abs(value) < 1e-8 else values, rtol=2**-11)


@pytest.mark.parametrize("quant", QUANTS.values(), ids=QUANTS)
def test_scales_that_f16_holds_badly_do_not_wrap_codes_around(quant: GroupedQuant) -> None:
    """The smallest f16 is 2**-24; a scale of 1.4 times that is stored too small, and the codes must stop at the end."""
    largest = {8: 127, 4: 15 if quant.has_minimums else 8}[quant.bits] * 1.4 * 2.0**-24
    values = np.linspace(-1, 1, 256, dtype=np.float32).reshape(1, 256) * np.float32(largest)
    weights = rounded(values, quant)
    assert np.abs(weights - values).max() < 0.5 * np.abs(values).max()


@pytest.mark.parametrize("quant", QUANTS.values(), ids=QUANTS)
@pytest.mark.parametrize("value", [1e30, -1e30, 3e38])
def test_weights_beyond_f16_show_as_infinite_scales(quant: GroupedQuant, value: float) -> None:
    values = np.random.default_rng(8).standard_normal((2, 128)).astype(np.float32)
    assert is_finite(quant.encode(values))
    values[1, 3:5] = value, -value
    assert not is_finite(quant.encode(values))


def test_group_falls_back_to_one_that_divides() -> None:
    for asked, columns, found in [
        ("int4-g128", 576, "int4-g64"),
        ("int8-g128", 96, "int8-g32"),
        ("int4-g64", 64, "int4-g64"),
    ]:
        assert QUANTS[asked].fitting(columns).name == found
