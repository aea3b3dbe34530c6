"""Tensors of a GGUF file as numbers."""

import gguf.quants
import numpy as np
import pytest
from gguf import GGMLQuantizationType as GGMLType

from edgellm.converters.tensors import to_float32
from edgellm.errors import UnsupportedModelError


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
