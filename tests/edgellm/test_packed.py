"""What is written is what is read, and nothing else is accepted."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from edgellm.errors import PackedFileError
from edgellm.families.llama import FAMILY as LLAMA
from edgellm.families.llama import LlamaConfig
from edgellm.kernels.quants import quants
from edgellm.kernels.quants.quant import Quant
from edgellm.packed.header import open_header
from edgellm.packed.read import PackedModel, open_packed
from edgellm.packed.write import PackedWriter

NETWORK = LLAMA.network(
    LlamaConfig(
        architecture="llama",
        layers=2,
        width=64,
        heads=2,
        kv_heads=1,
        head_size=32,
        ffn_width=96,
        vocabulary=300,
        context=128,
        rope_theta=10000.0,
        rope_size=12,
        rope_scale=1.0,
        norm_epsilon=1e-5,
        tied_head=False,
    ).to_json()
)
VOCABULARY = b'{"kind": "bpe", "tokens": ["caf\xc3\xa9"]}'
PROVENANCE = {"name": "tiny", "source": "tiny.gguf", "license": "apache-2.0"}


def quant_of(name: str) -> Quant:
    kind = "int8" if name in ("embedding", "head") else "int4-asym" if name.endswith(".v") else "int4"
    return quants()[f"{kind}-g32"]


def write_tiny(path: Path, *, rope_factors: bool = True) -> dict[str, np.ndarray]:
    """A packed file of random numbers; returns what was written, by the container's names."""
    rng = np.random.default_rng(7)
    weights = NETWORK.matrices()
    chosen = {name: quant_of(name) for name in weights}
    vectors = [spec for spec in NETWORK.tensors() if not spec.is_matrix and (rope_factors or not spec.is_optional)]
    written = {}
    with PackedWriter(
        path,
        NETWORK,
        chosen,
        vocabulary=VOCABULARY,
        chat_template="{{ 'é' }}",
        provenance=PROVENANCE,
        optional=["rope_factors"] if rope_factors else [],
    ) as writer:
        for spec in reversed(vectors):
            written[spec.name] = rng.standard_normal(spec.shape).astype(np.float32)
            writer.write_vector(spec.name, written[spec.name])
        for name, (rows, columns) in weights.items():
            parts = {}
            for part, spec in chosen[name].parts(rows, columns).items():
                if spec.dtype == np.uint8:
                    parts[part] = rng.integers(0, 256, spec.shape, np.uint8)
                else:
                    parts[part] = rng.standard_normal(spec.shape).astype(spec.dtype)
                written[f"{name}.{part}"] = parts[part]
            writer.write_rows(name, 0, {part: array[:1] for part, array in parts.items()})
            if rows > 32:
                writer.write_rows(name, 32, {part: array[1:] for part, array in parts.items()})
        writer.finish({"relative_error": 0.25})
    return written


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.edgellm"
    write_tiny(path)
    return path


def test_read_equals_written(tmp_path: Path) -> None:
    path = tmp_path / "tiny.edgellm"
    written = write_tiny(path)
    model = open_packed(path)
    assert model.network == NETWORK
    assert model.vocabulary == VOCABULARY
    assert model.chat_template == "{{ 'é' }}"
    assert model.provenance == PROVENANCE
    assert model.report == {"relative_error": 0.25}
    assert model.nbytes == path.stat().st_size
    read: dict[str, np.ndarray] = dict(model.vectors)
    for name, weight in model.weights.items():
        assert (weight.rows, weight.columns) == NETWORK.matrices()[name]
        assert weight.quant == quant_of(name)
        read |= {f"{name}.{part}": array for part, array in weight.parts.items()}
    assert read.keys() == written.keys()
    for name, array in written.items():
        np.testing.assert_array_equal(read[name], array, err_msg=name)
        assert not read[name].flags.writeable, name
        assert not read[name].flags.owndata, name
        assert read[name].ctypes.data % 64 == 0, name


def test_without_rope_factors(tmp_path: Path) -> None:
    write_tiny(tmp_path / "tiny.edgellm", rope_factors=False)
    assert "rope_factors" not in open_packed(tmp_path / "tiny.edgellm").vectors


def test_safetensors_package_lists_the_same(tmp_path: Path) -> None:
    path = tmp_path / "tiny.edgellm"
    written = write_tiny(path)
    tensors = safetensors.numpy.load_file(path)
    assert tensors.pop("tokenizer").tobytes().rstrip() == VOCABULARY
    assert tensors.keys() == written.keys()
    for name, array in written.items():
        np.testing.assert_array_equal(tensors[name], array, err_msg=name)
    with safetensors.safe_open(path, "numpy") as file:
        assert file.metadata()["format"] == "edgellm-packed"


def test_bits_per_weight_and_parameters(packed: Path) -> None:
    model = open_packed(packed)
    body = 2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 96)
    assert model.header.num_parameters == 2 * 300 * 64 + body + 5 * 64 + 6
    bits = 8.5 * 2 * 300 * 64 + 4.5 * body + 0.5 * 2 * 32 * 64
    assert model.header.bits_per_weight == pytest.approx(bits / (2 * 300 * 64 + body), rel=1e-12)


def test_header_alone(packed: Path) -> None:
    header = open_header(packed)
    assert header == open_packed(packed).header
    assert header.quant_names == ["int4-g32", "int8-g32", "int4-asym-g32"]


def test_arrays_outlive_close(packed: Path) -> None:
    model = open_packed(packed)
    vector = model.vectors["norm"]
    copy = vector.copy()
    model.close()
    model.close()
    np.testing.assert_array_equal(vector, copy)


def test_failed_write_leaves_the_old_file_and_nothing_else(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = packed.read_bytes()

    def full_disk(self: PackedWriter, *_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PackedWriter, "write_rows", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_tiny(packed)
    assert list(packed.parent.iterdir()) == [packed]
    assert packed.read_bytes() == before


def test_unfinished_write_is_a_bug(tmp_path: Path) -> None:
    chosen = {name: quant_of(name) for name in NETWORK.matrices()}
    writer = PackedWriter(tmp_path / "x.edgellm", NETWORK, chosen, vocabulary=b"{}", chat_template=None, provenance={})
    with writer, pytest.raises(AssertionError):
        writer.finish({})
    assert not list(tmp_path.iterdir())


# --- hostile files -------------------------------------------------------------------------------------------------


def header_of(data: bytes) -> dict[str, Any]:
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])


def with_header(data: bytes, header: dict[str, Any] | bytes) -> bytes:
    """The file with another header in the same space."""
    length = int.from_bytes(data[:8], "little")
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    assert len(text) <= length
    return data[:8] + text.ljust(length) + data[8 + length :]


def refuse(path: Path, data: bytes, match: str | None = None) -> None:
    path.write_bytes(data)
    with pytest.raises(PackedFileError, match=match) as caught:
        open_packed(path)
    assert "pull the model again" in str(caught.value)
    assert str(path) in str(caught.value)


def test_truncated_anywhere(packed: Path) -> None:
    data = packed.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    lengths = {*range(200), *range(start - 130, start + 130), *range(len(data) - 130, len(data))}
    for length in sorted(lengths | set(random.Random(1).sample(range(len(data)), 60))):
        refuse(packed, data[:length])
    refuse(packed, data + b"\0" * 64, "its header says")


def test_flipped_header_bytes_are_refused_or_harmless(packed: Path) -> None:
    """A flipped byte may hit a text that nobody checks (the report); anything else must be PackedFileError."""
    data = packed.read_bytes()
    length = len(json.dumps(header_of(data)))
    rng = random.Random(2)
    refused = 0
    for _ in range(400):
        changed = bytearray(data)
        changed[rng.randrange(8 + length)] = rng.randrange(256)
        packed.write_bytes(changed)
        try:
            model: PackedModel | None = open_packed(packed)
        except PackedFileError:
            model = None
            refused += 1
        if model is not None:
            assert model.weights.keys() == model.network.matrices().keys()
    assert refused > 300


CHANGES = [
    ("F16", lambda h: h["norm"].update(dtype="F16"), "norm"),
    ("unknown dtype", lambda h: h["norm"].update(dtype="Q4"), "norm"),
    ("shape", lambda h: h["embedding.codes"].update(shape=[20, 2, 511]), "embedding.codes"),
    ("negative shape", lambda h: h["tokenizer"].update(shape=[-64]), "tokenizer"),
    ("huge shape", lambda h: h["tokenizer"].update(shape=[1 << 70]), "tokenizer"),
    ("fraction", lambda h: h["tokenizer"].update(shape=[64.0]), "tokenizer"),
    ("true", lambda h: h["tokenizer"].update(shape=[True]), "tokenizer"),
    ("empty tokenizer", lambda h: h["tokenizer"].update(shape=[0]), "tokenizer"),
    ("no tokenizer", lambda h: h.pop("tokenizer"), "tokenizer"),
    ("tokenizer no object", lambda h: h.update(tokenizer=3), "tokenizer"),
    ("overlap", lambda h: h["norm"].update(data_offsets=h["layers.0.ffn.norm"]["data_offsets"]), "norm"),
    ("hole", lambda h: h["norm"].update(data_offsets=[x + 64 for x in h["norm"]["data_offsets"]]), "norm"),
    ("backwards", lambda h: h["norm"]["data_offsets"].reverse(), "norm"),
    ("tensor no object", lambda h: h.update(norm=None), "norm"),
    ("missing", lambda h: h.pop("layers.1.ffn.up.scales"), "layers.1.ffn.up.scales.*missing"),
    ("extra", lambda h: h.update(more=h["norm"]), "'more' is not expected"),
    ("no metadata", lambda h: h.pop("__metadata__"), "__metadata__"),
    ("metadata no text", lambda h: h["__metadata__"].update(version=1), "__metadata__"),
    ("format", lambda h: h["__metadata__"].update(format="pt"), "format"),
    ("version", lambda h: h["__metadata__"].update(version="2"), "version is '2'"),
    ("config no JSON", lambda h: h["__metadata__"].update(config="{"), "config"),
    ("config no object", lambda h: h["__metadata__"].update(config="[]"), "config"),
    ("report missing", lambda h: h["__metadata__"].pop("report"), "report"),
    ("provenance", lambda h: h["__metadata__"].update(provenance='{"a": 1}'), "provenance"),
    ("surrogate", lambda h: h["__metadata__"].update(provenance='{"a": "\\ud800"}'), "provenance"),
    ("NaN", lambda h: h["__metadata__"].update(report='{"a": NaN}'), "report"),
    ("duplicate", lambda h: h["__metadata__"].update(report='{"a": 1, "a": 1}'), "twice"),
    ("long number", lambda h: h["__metadata__"].update(report='{"a": ' + "1" * 5000 + "}"), "report"),
    ("deep", lambda h: h["__metadata__"].update(report='{"a": ' + "[" * 9000), "report"),
]


@pytest.mark.parametrize(("change", "match"), [c[1:] for c in CHANGES], ids=[c[0] for c in CHANGES])
def test_changed_header_is_refused(packed: Path, change: Any, match: str) -> None:
    data = packed.read_bytes()
    header = header_of(data)
    change(header)
    refuse(packed, with_header(data, header), match)


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("layers", 1 << 24),
        ("layers", 3),
        ("layers", 0),
        ("layers", True),
        ("width", 1 << 60),
        ("width", 96),
        ("vocabulary", 301 + 32),
        ("rope_size", 14),
        ("norm_epsilon", "1e-5"),
        ("tied_head", True),
        ("architecture", "gpt2"),
        ("architecture", None),
        ("more", 1),
    ],
)
def test_changed_config_is_refused(packed: Path, entry: str, value: object) -> None:
    data = packed.read_bytes()
    header = header_of(data)
    config = json.loads(header["__metadata__"]["config"]) | {entry: value}
    header["__metadata__"]["config"] = json.dumps(config)
    refuse(packed, with_header(data, header))


@pytest.mark.parametrize("layout", ["int4-asym-g32", "int4-g64", "int8-g128", "int5-g32", None, []])
def test_changed_layout_is_refused(packed: Path, layout: object) -> None:
    data = packed.read_bytes()
    header = header_of(data)
    layouts = json.loads(header["__metadata__"]["layouts"]) | {"layers.0.attention.q": layout}
    header["__metadata__"]["layouts"] = json.dumps(layouts)
    refuse(packed, with_header(data, header), r"layers\.0\.attention\.q")


def test_group_that_does_not_divide_the_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is consistent in itself, but whose last inputs have no scales: a kernel would read past the end."""

    def quant(name: str) -> Quant:
        return quants()["int4-g64" if name == "layers.0.ffn.down" else "int8-g32"]  # ffn.down has 96 columns

    monkeypatch.setattr("tests.edgellm.test_packed.quant_of", quant)
    write_tiny(tmp_path / "bad.edgellm")
    with pytest.raises(PackedFileError, match=r"layers\.0\.ffn\.down has 96 columns"):
        open_packed(tmp_path / "bad.edgellm")


def test_tokenizer_that_is_not_padded(tmp_path: Path) -> None:
    path = tmp_path / "tiny.edgellm"
    write_tiny(path, rope_factors=False)  # so that the tokenizer is last and the file consistent in itself
    data = path.read_bytes()
    header = header_of(data)
    header["tokenizer"]["shape"][0] -= 1
    header["tokenizer"]["data_offsets"][1] -= 1
    refuse(path, with_header(data, header)[:-1], "tokenizer's length 63")


def test_header_that_is_not_json(packed: Path) -> None:
    data = packed.read_bytes()
    refuse(packed, with_header(data, b'{"norm": {}, "norm": {}}'), "twice")
    refuse(packed, with_header(data, b"[" * 10000), "header")
    refuse(packed, with_header(data, b'"\xff"'), "header")
    refuse(packed, with_header(data, b"[]"), "header")
    for length in (0, 1, len(data), 1 << 63, (1 << 64) - 1):
        refuse(packed, length.to_bytes(8, "little") + data[8:], f"header of {length} bytes")
    shifted = int.from_bytes(data[:8], "little") + 4
    refuse(packed, shifted.to_bytes(8, "little") + data[8 : shifted + 4] + b"    " + data[shifted + 4 :], "multiple")


@pytest.mark.parametrize("name", ["layers.0.attention.v.mins", "embedding.scales", "norm", "rope_factors"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite(packed: Path, name: str, value: float) -> None:
    data = packed.read_bytes()
    entry = header_of(data)[name]
    end = 8 + int.from_bytes(data[:8], "little") + entry["data_offsets"][1]
    number = np.array([value], np.float16 if entry["dtype"] == "F16" else np.float32).tobytes()
    refuse(packed, data[: end - len(number)] + number + data[end:], f"tensor {name} holds")


def test_blank_tokenizer(packed: Path) -> None:
    data = packed.read_bytes()
    begin, end = (8 + int.from_bytes(data[:8], "little") + x for x in header_of(data)["tokenizer"]["data_offsets"])
    refuse(packed, data[:begin] + b" " * (end - begin) + data[end:], "tokenizer is empty")


def test_no_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(PackedFileError, match="check the path"):
            open_packed(path)
