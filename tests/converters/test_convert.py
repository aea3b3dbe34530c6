"""A whole GGUF in, a packed file out: the same weights, named and described."""

import hashlib
import os
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest

from edgellm.converters.convert import convert
from edgellm.converters.gguf_reader import open_gguf
from edgellm.converters.on_the_fly import pack_on_the_fly
from edgellm.converters.tensors import match_tensors, read_network
from edgellm.errors import FileFormatError, GGUFError, OptionError, UnsupportedModelError
from edgellm.families.llama import FAMILY as LLAMA
from edgellm.families.llama import LlamaConfig
from edgellm.kernels.quants import quants
from edgellm.packed.read import PackedModel, open_packed
from edgellm.packed.write import PackedWriter
from edgellm.tokenizer.vocabulary import Vocabulary
from tests.tiny import CHAT_TEMPLATE, make_tiny_gguf, tiny_tokens


def source_of(path: Path) -> dict[str, np.ndarray]:
    """Every tensor by our name as the gguf package dequantizes it, float32 [N, C] or [N]."""
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    file = open_gguf(path)
    values = {}
    for name, tensor in match_tensors(file, *read_network(file)).items():
        data = gguf.quants.dequantize(tensors[tensor.name].data, tensor.type)
        values[name] = data.reshape(tensors[tensor.name].shape[::-1].tolist())
    return values


def config_of(path: Path) -> LlamaConfig:
    return LlamaConfig.from_json(read_network(open_gguf(path))[1].config)


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    difference = found.astype(np.float64) - expected
    return float(np.sqrt(np.square(difference).sum() / np.square(expected, dtype=np.float64).sum()))


def convert_tiny(folder: Path, layout: str | None = None, **options: object) -> tuple[Path, PackedModel]:
    """Convert in chunks so small that every matrix takes several."""
    source = make_tiny_gguf(folder / "tiny.gguf", **options)  # type: ignore[arg-type]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgellm.converters.convert.CHUNK_WEIGHTS", 1)
        convert(source, folder / "tiny.edgellm", layout=layout)
    return source, open_packed(folder / "tiny.edgellm")


@pytest.mark.parametrize(("body", "layout"), [("Q4_0", "int4-g32"), ("Q4_1", "int4-asym-g32"), ("Q8_0", "int8-g32")])
@pytest.mark.parametrize("tied", [True, False])
def test_codes_are_kept_bit_for_bit(tmp_path: Path, body: str, layout: str, tied: bool) -> None:
    source, model = convert_tiny(tmp_path, body=body, embedding=body, tied=tied, rope_factors=True)
    expected = source_of(source)
    assert ("head" in model.weights) is not tied
    assert model.weights.keys() | model.vectors.keys() == expected.keys()
    for name, weight in model.weights.items():
        assert weight.quant.name == layout
        np.testing.assert_array_equal(weight.dense(), expected[name], err_msg=name)
        assert model.report["tensors"][name] == {"source": body, "layout": layout, "relative_error": 0.0}
    for name, vector in model.vectors.items():
        np.testing.assert_array_equal(vector, expected[name], err_msg=name)
    assert model.report["relative_error"] == 0.0
    assert model.report["bits_per_weight"] == quants()[layout].bits_per_weight == model.header.bits_per_weight


@pytest.mark.parametrize("body", ["F32", "F16", "BF16", "Q5_0", "Q5_1"])
def test_other_types_become_int8(tmp_path: Path, body: str) -> None:
    source, model = convert_tiny(tmp_path, body=body, embedding=body)
    expected = source_of(source)
    for name, weight in model.weights.items():
        assert weight.quant.name == "int8-g32"
        error = relative_error(weight.dense(), expected[name])
        assert 0 < error < 0.01
        assert model.report["tensors"][name]["relative_error"] == pytest.approx(error, rel=1e-6)
    found = np.concatenate([weight.dense().ravel() for weight in model.weights.values()])
    wanted = np.concatenate([expected[name].ravel() for name in model.weights])
    assert model.report["relative_error"] == pytest.approx(relative_error(found, wanted), rel=1e-6)


@pytest.mark.parametrize(("kind", "layout"), [("Q4_K", "q4_k"), ("Q6_K", "q6_k"), ("Q2_K", "int8-g32")])
def test_super_blocks_are_kept_where_a_format_holds_them_else_become_int8(
    tmp_path: Path, kind: str, layout: str
) -> None:
    """Types that the gguf package reads but does not write: random bytes with sane scales."""
    rng = np.random.default_rng(1)
    ggml = gguf.GGMLQuantizationType[kind]
    data = rng.integers(0, 256, (256, gguf.constants.GGML_QUANT_SIZES[ggml][1]), np.uint8)
    data[:, -4:-2] = data[:, -2:] = data[:, :2] = data[:, 2:4] = np.array([0.01], np.float16).view(np.uint8)

    def change(writer: gguf.GGUFWriter) -> None:
        del writer.tensors[0]["blk.1.ffn_up.weight"]
        writer.add_tensor("blk.1.ffn_up.weight", data, raw_dtype=ggml)

    source, model = convert_tiny(tmp_path, width=256, ffn=256, change=change)
    expected = source_of(source)["layers.1.ffn.up"]
    np.testing.assert_array_equal(expected, gguf.quants.dequantize(data, ggml))
    weight = model.weights["layers.1.ffn.up"]
    assert weight.quant.name == layout
    error = relative_error(weight.dense(), expected)
    assert error == 0.0 if layout != "int8-g32" else 0 < error < 0.01
    assert model.report["tensors"]["layers.1.ffn.up"]["source"] == kind


@pytest.mark.parametrize("layout", quants())
def test_layout_given(tmp_path: Path, layout: str) -> None:
    """The body gets it; the embedding and head only if it has more than 4 bits; else the format that fits."""
    source, model = convert_tiny(
        tmp_path, layout, width=256, ffn=192, head_size=64, body="F32", embedding="Q8_0", tied=False
    )
    expected = source_of(source)
    for name, weight in model.weights.items():
        asked = quants()[layout]
        if name in ("embedding", "head") and asked.bits == 4:
            asked = quants()["int8-g32"]
        assert weight.quant == asked.fitting(weight.columns), name
        error = relative_error(weight.dense(), expected[name])
        assert error < (0.01 if weight.quant.bits == 8 else 0.15), name
    assert model.weights["layers.0.attention.q"].quant.name == layout
    assert model.provenance["recipe"] == layout


def test_layout_given_that_the_codes_have_already_is_exact(tmp_path: Path) -> None:
    source, model = convert_tiny(tmp_path, "int4-asym-g32", body="Q4_1", embedding="Q4_0")
    expected = source_of(source)
    for name, weight in model.weights.items():
        np.testing.assert_array_equal(weight.dense(), expected[name], err_msg=name)


def test_description(tmp_path: Path) -> None:
    source, model = convert_tiny(tmp_path)
    assert model.provenance["name"] == "Tiny Model"
    assert model.provenance["source"] == "tiny.gguf"
    assert model.provenance["source_sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert model.provenance["license"] == "apache-2.0"
    assert model.provenance["recipe"] == "exact"
    assert model.chat_template == CHAT_TEMPLATE
    assert Vocabulary.from_bytes(model.vocabulary).tokens == tuple(tiny_tokens())
    config = LlamaConfig.from_json(model.network.config)
    assert (config.layers, config.width, config.heads, config.kv_heads) == (2, 64, 4, 2)
    assert (config.head_size, config.ffn_width, config.vocabulary) == (32, 96, len(tiny_tokens()))
    assert (config.context, config.rope_theta, config.rope_size, config.rope_scale) == (512, 10000.0, 32, 1.0)
    assert config.norm_epsilon == np.float32(1e-5)
    assert config.tied_head is True


def test_progress_reaches_the_end(tmp_path: Path) -> None:
    source = make_tiny_gguf(tmp_path / "tiny.gguf")
    seen: list[tuple[int, int, str]] = []
    convert(source, tmp_path / "a.edgellm", progress=lambda *step: seen.append(step))
    assert [step[0] for step in seen] == sorted(step[0] for step in seen)
    assert seen[-1][0] == seen[-1][1]
    assert seen[0][2] == "checksum" and seen[-1][2] == "blk.1.ffn_down.weight"


def test_same_file_every_time(tmp_path: Path) -> None:
    source = make_tiny_gguf(tmp_path / "tiny.gguf")
    for name in ("a", "b"):
        convert(source, tmp_path / f"{name}.edgellm", sha256="0" * 64)
    assert (tmp_path / "a.edgellm").read_bytes() == (tmp_path / "b.edgellm").read_bytes()


def test_peak_memory_is_a_few_chunks(tmp_path: Path) -> None:
    """Independent of the model: the file has 60 MB of weights."""
    source = make_tiny_gguf(
        tmp_path / "big.gguf", layers=3, width=512, ffn=8192, heads=8, head_size=64, body="F32", embedding="F32"
    )
    assert source.stat().st_size > 150_000_000
    convert(make_tiny_gguf(tmp_path / "tiny.gguf"), tmp_path / "tiny.edgellm")  # imports and the like
    tracemalloc.start()
    try:
        convert(source, tmp_path / "big.edgellm")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 40_000_000


# --- what is refused -----------------------------------------------------------------------------------------------


def refuse(folder: Path, error: type[Exception], match: str, **options: object) -> None:
    source = make_tiny_gguf(folder / "bad.gguf", **options)  # type: ignore[arg-type]
    with pytest.raises(error, match=match):
        convert(source, folder / "bad.edgellm")
    assert sorted(path.name for path in folder.iterdir()) == ["bad.gguf"]


def set_value(key: str, value: object) -> object:
    """A change that replaces or adds one metadata entry."""

    def change(writer: gguf.GGUFWriter) -> None:
        writer.kv_data[0].pop(key, None)
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif value is not None:
            writer.add_uint32(key, value)  # type: ignore[arg-type]

    return change


@pytest.mark.parametrize(
    ("key", "value", "error", "match"),
    [
        ("general.architecture", "mamba", UnsupportedModelError, "'mamba'"),
        ("general.architecture", 3, GGUFError, r"general\.architecture is 3"),
        ("llama.expert_count", 8, UnsupportedModelError, "mixtures of experts"),
        ("llama.rope.scaling.type", "yarn", UnsupportedModelError, "yarn"),
        ("llama.block_count", None, GGUFError, r"llama\.block_count is missing"),
        ("llama.block_count", 3, GGUFError, r"blk\.2\.\S+ is missing"),
        ("llama.block_count", 1, UnsupportedModelError, r"blk\.1\.\S+' has no place"),
        ("llama.block_count", 4000, GGUFError, "the metadata say 4000 layers"),
        ("llama.block_count", 1 << 23, UnsupportedModelError, "layers = 8388608"),
        ("llama.block_count", 0, UnsupportedModelError, "layers = 0"),
        ("llama.embedding_length", "64", GGUFError, r"embedding_length is '64'"),
        ("llama.embedding_length", 96, GGUFError, "shape"),
        ("llama.embedding_length", (1 << 32) - 32, UnsupportedModelError, "width"),
        ("llama.attention.head_count", 0, GGUFError, "head_count is 0"),
        ("llama.attention.head_count", [4, 4], UnsupportedModelError, "layer to layer"),
        ("llama.attention.head_count_kv", 3, UnsupportedModelError, "share 3"),
        ("llama.attention.value_length", 64, UnsupportedModelError, "values 64 entries"),
        ("llama.attention.layer_norm_rms_epsilon", None, GGUFError, "missing"),
        ("llama.attention.layer_norm_rms_epsilon", float("nan"), UnsupportedModelError, "norm_epsilon"),
        ("llama.rope.freq_base", float("inf"), UnsupportedModelError, "rope_theta"),
        ("llama.rope.freq_base", -1.0, UnsupportedModelError, "rope_theta"),
        ("llama.rope.dimension_count", 34, UnsupportedModelError, "rope size 34"),
        ("tokenizer.ggml.tokens", None, GGUFError, "tokens"),
        ("tokenizer.ggml.tokens", ["a", "b"], FileFormatError, ""),
        ("tokenizer.chat_template", 3, GGUFError, "chat_template is 3"),
        ("general.license", 3, GGUFError, "license is 3"),
    ],
)
def test_metadata_that_is_refused(tmp_path: Path, key: str, value: object, error: type[Exception], match: str) -> None:
    refuse(tmp_path, error, match or ".", change=set_value(key, value))


def test_defaults_and_scaling(tmp_path: Path) -> None:
    def change(writer: gguf.GGUFWriter) -> None:
        for key in ("rope.dimension_count", "rope.freq_base", "attention.key_length", "attention.value_length"):
            del writer.kv_data[0][f"llama.{key}"]
        del writer.kv_data[0]["llama.attention.head_count_kv"]
        writer.add_float32("llama.rope.scaling.factor", 4.0)

    path = make_tiny_gguf(tmp_path / "t.gguf", heads=2, kv_heads=2, change=change)
    config = config_of(path)
    assert (config.rope_size, config.rope_theta, config.head_size, config.kv_heads) == (32, 10000.0, 32, 2)
    assert config.rope_scale == 4.0
    path = make_tiny_gguf(tmp_path / "t.gguf", change=set_value("llama.rope.scale_linear", 0.0))
    assert config_of(path).rope_scale == 1.0

    def none(writer: gguf.GGUFWriter) -> None:
        writer.add_string("llama.rope.scaling.type", "none")
        writer.add_float32("llama.rope.scaling.factor", 4.0)

    path = make_tiny_gguf(tmp_path / "t.gguf", change=none)
    assert config_of(path).rope_scale == 1.0


def test_tensors_that_are_refused(tmp_path: Path) -> None:
    def bias(writer: gguf.GGUFWriter) -> None:
        writer.add_tensor("blk.0.attn_q.bias", np.ones(128, np.float32))

    refuse(tmp_path, UnsupportedModelError, r"'blk\.0\.attn_q\.bias' has no place", change=bias)
    refuse(tmp_path, GGUFError, r"tensor token_embd\.weight is missing|no tensors|0 tensors", tensors=False)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite(tmp_path: Path, value: float) -> None:
    for options in ({"body": "F32"}, {"body": "Q8_0"}):
        source = make_tiny_gguf(tmp_path / "bad.gguf", **options)  # type: ignore[arg-type]
        data = bytearray(source.read_bytes())
        tensor = next(t for t in gguf.GGUFReader(source).tensors if t.name == "blk.1.ffn_up.weight")
        number = np.array([value], np.float32 if options["body"] == "F32" else np.float16).tobytes()
        data[tensor.data_offset : tensor.data_offset + len(number)] = number
        source.write_bytes(data)
        with pytest.raises(GGUFError, match=r"blk\.1\.ffn_up\.weight holds"):
            convert(source, tmp_path / "bad.edgellm")
        assert not (tmp_path / "bad.edgellm").exists()


def test_weights_too_large_for_f16_scales(tmp_path: Path) -> None:
    source = make_tiny_gguf(tmp_path / "bad.gguf", body="F32")
    data = bytearray(source.read_bytes())
    offset = next(t for t in gguf.GGUFReader(source).tensors if t.name == "blk.0.ffn_up.weight").data_offset
    data[offset : offset + 4] = np.array([1e30], np.float32).tobytes()
    source.write_bytes(data)
    for layout in (None, "int4-g32", "int4-asym-g32"):
        with pytest.raises(UnsupportedModelError, match=r"blk\.0\.ffn_up\.weight are too large"):
            convert(source, tmp_path / "bad.edgellm", layout=layout)


def test_wrong_calls(tmp_path: Path) -> None:
    source = make_tiny_gguf(tmp_path / "tiny.gguf")
    with pytest.raises(OptionError, match=r"'int3' is unknown; it must be one of: .*int4-g32"):
        convert(source, tmp_path / "a.edgellm", layout="int3")
    with pytest.raises(OptionError, match="the source itself"):
        convert(source, source)
    with pytest.raises(GGUFError, match="check the path"):
        convert(tmp_path / "absent.gguf", tmp_path / "a.edgellm")


def test_every_name_is_translated() -> None:
    assert LLAMA.gguf_name("layers.7.ffn.down") == "blk.7.ffn_down.weight"
    assert LLAMA.gguf_name("rope_factors") == "rope_freqs.weight"


# --- packing on the fly --------------------------------------------------------------------------------------------


def test_packed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_tiny_gguf(tmp_path / "tiny.gguf")
    packed = pack_on_the_fly(source, tmp_path / "cache")
    assert open_packed(packed).provenance["source"] == "tiny.gguf"
    before = packed.stat().st_ino
    with monkeypatch.context() as patch:
        patch.setattr(PackedWriter, "finish", None)
        assert pack_on_the_fly(source, tmp_path / "cache") == packed
    packed.write_bytes(packed.read_bytes()[:-1])
    assert pack_on_the_fly(source, tmp_path / "cache") == packed
    assert open_packed(packed).path.stat().st_ino != before


def test_changed_source_is_packed_again_and_the_old_goes(tmp_path: Path) -> None:
    source = make_tiny_gguf(tmp_path / "tiny.gguf")
    other = pack_on_the_fly(make_tiny_gguf(tmp_path / "other.gguf"), tmp_path / "cache")
    old = pack_on_the_fly(source, tmp_path / "cache")
    make_tiny_gguf(source, seed=1)
    os.utime(source, ns=(1, 1))
    new = pack_on_the_fly(source, tmp_path / "cache")
    assert sorted((tmp_path / "cache" / "packed").iterdir()) == sorted([new, other])
    assert old != new
