"""Codes that fit are kept bit for bit; all others are rounded as well as the layout can."""

import gguf.quants
import numpy as np
import pytest
from gguf import GGMLQuantizationType as GGMLType

from edgellm.converters.quantize import EXACT, Codes, fitting, quantize, to_float32, transcode
from edgellm.errors import UnsupportedModelError
from edgellm.kernels.layouts import LAYOUTS, Layout, dequantize, pack_codes, pack_scales

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


def unpacked(layout: Layout, found: Codes) -> np.ndarray:
    mins = None if found.mins is None else pack_scales(found.mins)
    return dequantize(layout, pack_codes(layout, found.codes), pack_scales(found.scales), mins, len(found.codes))


@pytest.mark.parametrize("kind", EXACT)
def test_transcoding_is_exact(kind: GGMLType) -> None:
    blocks = random_blocks(kind, 70, 9, seed=kind)
    expected = gguf.quants.dequantize(blocks, kind)
    assert np.isfinite(expected).all()
    found = transcode(kind, blocks)
    np.testing.assert_array_equal(unpacked(EXACT[kind], found), expected)
    scales = np.ascontiguousarray(blocks.reshape(70, 9, -1)[:, :, :2]).view(np.uint16)[:, :, 0]
    np.testing.assert_array_equal(found.scales.view(np.uint16), scales)  # the sign of a zero scale too


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_rounding_is_to_the_nearest_code(layout: Layout) -> None:
    values = np.random.default_rng(4).standard_normal((50, 256)).astype(np.float32)
    found = quantize(values, layout)
    step = np.repeat(np.abs(found.scales.astype(np.float32)), layout.group, axis=1)
    error = np.abs(unpacked(layout, found) - values)
    # Half a step; at the ends of the range one f16 rounding of scale (and minimum) more: 2**-11 of up to 127 steps.
    # int4 has one code less on one side: a value near the opposite of the peak may miss by a whole step.
    allowed = step * (0.5 + 2**-11 * 128 + (0.51 if layout.name.startswith("int4-g") else 0))
    worst = np.unravel_index((error - allowed).argmax(), error.shape)
    assert error[worst] <= allowed[worst], worst


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_error_is_what_theory_says(layout: Layout) -> None:
    """Normal weights, rounded uniformly: the error's RMS is step / sqrt(12)."""
    values = np.random.default_rng(5).standard_normal((200, 512)).astype(np.float32)
    found = quantize(values, layout)
    step = np.repeat(np.abs(found.scales.astype(np.float64)), layout.group, axis=1)
    rms = np.sqrt(np.square(unpacked(layout, found) - values, dtype=np.float64).mean())
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
    if LAYOUTS[layout].asymmetric:
        values += values[:, :, 1:2] * 2
    values = values.reshape(64, 128)
    np.testing.assert_array_equal(unpacked(LAYOUTS[layout], quantize(values, LAYOUTS[layout])), values)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("value", [0.0, 1e-12, -1e-12, 3.0, -3.0])
def test_constant_rows(layout: Layout, value: float) -> None:
    """Nothing divides by zero; a constant is stored to f16's accuracy (and what f16 cannot hold is zero)."""
    values = np.full((3, 256), value, np.float32)
    weights = unpacked(layout, quantize(values, layout))
    np.testing.assert_allclose(weights, 0.0 if abs(value) < 1e-8 else values, rtol=2**-11)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_scales_that_f16_holds_badly_do_not_wrap_codes_around(layout: Layout) -> None:
    """The smallest f16 is 2**-24; a scale of 1.4 times that is stored too small, and the codes must stop at the end."""
    largest = {8: 127, 4: 15 if layout.asymmetric else 8}[layout.bits] * 1.4 * 2.0**-24
    values = np.linspace(-1, 1, 256, dtype=np.float32).reshape(1, 256) * np.float32(largest)
    weights = unpacked(layout, quantize(values, layout))
    assert np.abs(weights - values).max() < 0.5 * np.abs(values).max()


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("value", [1e30, -1e30, 3e38])
def test_weights_beyond_f16_show_as_infinite_scales(layout: Layout, value: float) -> None:
    values = np.random.default_rng(8).standard_normal((2, 128)).astype(np.float32)
    assert quantize(values, layout).is_finite()
    values[1, 3:5] = value, -value
    assert not quantize(values, layout).is_finite()


def test_to_float32() -> None:
    values = np.random.default_rng(7).standard_normal((3, 64)).astype(np.float32)
    for kind in (GGMLType.F32, GGMLType.F16, GGMLType.BF16, GGMLType.Q5_0):
        data = gguf.quants.quantize(values, kind)
        found = to_float32(kind, np.ascontiguousarray(data).view(np.uint8).reshape(-1), 3)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, gguf.quants.dequantize(data, kind))
    np.testing.assert_array_equal(to_float32(GGMLType.F32, values.view(np.uint8), 3), values)
    with pytest.raises(UnsupportedModelError, match="type I8 "):
        to_float32(GGMLType.I8, np.zeros((1, 32), np.uint8), 1)


def test_group_falls_back_to_one_that_divides() -> None:
    for asked, columns, found in [
        ("int4-g128", 576, "int4-g64"),
        ("int8-g128", 96, "int8-g32"),
        ("int4-g64", 64, "int4-g64"),
    ]:
        assert fitting(LAYOUTS[asked], columns).name == found
