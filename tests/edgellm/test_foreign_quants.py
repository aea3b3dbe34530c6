"""A GGUF file whose weights are of the types that llama.cpp writes: converted, loaded, and what its reference says."""

from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType

import edgellm
from edgellm.converters.convert import convert
from edgellm.converters.on_the_fly import pack_on_the_fly
from edgellm.engine.params import SamplingParams
from edgellm.families import find_family
from edgellm.packed.read import open_packed
from tests.kernels.blocks import GGUF_TYPES, random_blocks
from tests.tiny import make_tiny_gguf


def random_weights(values: np.ndarray, kind: GGMLQuantizationType) -> np.ndarray:
    """Blocks of a type that the gguf package cannot write, of weights that deviate as much as the values do."""
    rows, columns = values.shape
    seed = rows * columns

    def blocks(deviation: float) -> np.ndarray:
        return random_blocks(kind.name, rows, columns, np.random.default_rng(seed), deviation)

    return blocks(values.std() / gguf.quants.dequantize(blocks(1.0), kind).std())


@pytest.fixture(scope="module", params=["Q4_K Q6_K", "Q5_K Q6_K", "IQ4_NL IQ4_XS", "MXFP4 Q8_0"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    body, embedding = request.param.split()
    quantize = gguf.quants.quantize

    def written(values: np.ndarray, kind: GGMLQuantizationType) -> np.ndarray:
        return (
            random_weights(values, kind) if kind.name in GGUF_TYPES and kind.name != "MXFP4" else quantize(values, kind)
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf.quants, "quantize", written)
        path = tmp_path_factory.mktemp("foreign") / f"{body}.gguf"
        return make_tiny_gguf(path, width=256, head_size=64, ffn=512, body=body, embedding=embedding, tied=False)


def test_every_code_is_kept(source: Path, tmp_path: Path) -> None:
    packed = open_packed(pack_on_the_fly(source, tmp_path))
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(source).tensors}
    family = find_family("llama")
    for name, weight in packed.weights.items():
        tensor = tensors[family.gguf_name(name)]
        assert tensor.tensor_type.name in weight.quant.exact
        expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(weight.rows, -1)
        np.testing.assert_array_equal(weight.dense(), expected)


def test_the_model_is_what_its_reference_computes(source: Path, tmp_path: Path) -> None:
    """To float32's precision, but for texts where rounding an activation to INT8 falls the other way."""
    packed = open_packed(pack_on_the_fly(source, tmp_path))
    texts = np.random.default_rng(0).integers(0, 270, (20, 6)).tolist()
    errors = []
    with edgellm.load(source, threads=2) as model:
        assert len(list(model.generate(texts[0], SamplingParams(max_tokens=3)))) > 0
        for text in texts:
            exact = find_family("llama").reference(packed.network, packed, text)
            errors.append(np.abs(model.logits(text) - exact).max() / exact.std())
    assert np.quantile(errors, 0.5) < 1e-5


@pytest.mark.parametrize("width", [64, 256])
@pytest.mark.parametrize("layout", ["q4_k", "nf4"])
def test_a_format_of_choice(tmp_path: Path, layout: str, width: int) -> None:
    """Where its groups do not divide the columns, another is taken; 4 bits are not given to the embedding."""
    source = make_tiny_gguf(tmp_path / "tiny.gguf", width=width, body="Q8_0", ffn=96)
    convert(source, tmp_path / "tiny.edgellm", layout=layout)
    packed = open_packed(tmp_path / "tiny.edgellm")
    found = {weight.quant.name for name, weight in packed.weights.items() if name != "embedding"}
    others = {"q4_k": "int4-asym-g32", "nf4": "iq4_nl"}
    assert found == {others[layout]} | ({layout} if width % 256 == 0 or layout == "nf4" else set())
    assert packed.weights["embedding"].quant.name == "int8-g32"
    assert not any("." in name and name.endswith((".codes", ".scales")) for name in packed.vectors)
    with edgellm.load(tmp_path / "tiny.edgellm", threads=1) as model:
        exact = find_family("llama").reference(packed.network, packed, [5, 6, 7])
        assert np.abs(model.logits([5, 6, 7]) - exact).max() / exact.std() < 0.05
