"""A new family of known parts is one file: toy.py is all that edgellm ever hears of its models."""

import shutil
import sys
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

import edgellm
from edgellm import Model, SamplingParams, families
from edgellm.converters.convert import convert
from edgellm.engine.request import Piece
from edgellm.errors import GGUFError, PackedFileError, UnsupportedModelError
from edgellm.families import find_family, register
from edgellm.families.base import Weights
from edgellm.families.blocks import attention, reference_attention, reference_swiglu, swiglu
from edgellm.families.network import Network
from edgellm.kernels import jit, reference
from edgellm.kernels.quants import quants
from edgellm.packed.read import PackedModel, open_packed
from edgellm.runtime.build import network_graph
from edgellm.runtime.fuse import fuse
from edgellm.runtime.graph import GraphBuilder
from tests.edgellm.families import toy
from tests.edgellm.test_equalities import logits_in_steps, runner
from tests.tiny import add_tokenizer, tiny_tokens

CONFIG = {"depth": 2, "width": 64, "heads": 4, "kv_heads": 2, "head_size": 32, "ffn_width": 96, "context": 512}
TOKENS = np.random.default_rng(0).integers(0, 270, 300).tolist()  # longer than a chunk of attention
PROMPT = [5, 80, 90, 100, 7] * 8  # in which drafts are found
PARAMS = SamplingParams(max_tokens=30, logprobs=3, speculation="off")


def make_toy_gguf(path: Path, *, turns: bool = True) -> Path:
    """Random weights of everything that the network says it has."""
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "toy")
    for key, value in CONFIG.items():
        writer.add_uint32(f"toy.{key}", value)
    add_tokenizer(writer)
    sizes = {"layers" if key == "depth" else key: value for key, value in CONFIG.items()}
    config = toy.ToyConfig(architecture="toy", vocabulary=len(tiny_tokens()), tied_head=False, **sizes)
    for spec in toy.FAMILY.network(config.to_json()).tensors():
        name = toy.FAMILY.gguf_name(spec.name)
        if spec.is_matrix:
            deviation = 1.0 if spec.name in ("embedding", "head") else spec.shape[1] ** -0.5
            values = (rng.standard_normal(spec.shape) * deviation).astype(np.float32)
            kind = gguf.GGMLQuantizationType.Q4_0
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        elif turns or not spec.is_optional:
            writer.add_tensor(name, rng.uniform(0.5, 1.5, spec.shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(families, "_registered", {})
        register(toy.FAMILY)
        yield


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_toy_gguf(tmp_path_factory.mktemp("toy") / "toy.gguf")


@pytest.fixture(scope="module")
def path(source: Path, _registered: None) -> Path:
    """The packed file."""
    packed = source.with_suffix(".edgellm")
    convert(source, packed)
    return packed


@pytest.fixture(scope="module")
def packed(path: Path) -> PackedModel:
    return open_packed(path)


@pytest.fixture(scope="module")
def whole(library: jit.Library, packed: PackedModel) -> np.ndarray:
    """Logits of TOKENS, all in one step, by one thread."""
    with runner(library, packed) as run:
        return logits_in_steps(run, TOKENS, [300])


@pytest.fixture
def model(path: Path) -> Iterator[Model]:
    """For one test; at its end all memory must be free, and the books balance."""
    with edgellm.load(path, threads=2) as model:
        free = model.num_free_blocks
        yield model
        assert model.num_free_blocks == free, "somebody still holds memory"
        model.check_integrity()


def answer(model: Model, prompt: list[int], params: SamplingParams = PARAMS) -> list[Piece]:
    return list(model.generate(prompt, params))


def test_its_file_is_packed_under_our_names(packed: PackedModel) -> None:
    assert packed.network.config == toy.FAMILY.network(packed.network.config).config
    assert list(packed.weights)[:3] == ["embedding", "layers.0.attention.q", "layers.0.attention.k"]
    assert list(packed.weights)[-1] == "head"
    assert set(packed.vectors) == {"norm", "layers.0.norm", "layers.1.norm", "turns"}
    assert {weight.quant for weight in packed.weights.values()} == {quants()["int4-g32"]}


def errors_of(
    model: Model, weights: PackedModel, kv_cache_dtype: str = "bf16", family: toy.Toy = toy.FAMILY
) -> list[float]:
    """Of a model's logits of texts, by their reference with these weights, in standard deviations."""
    errors = []
    for start in range(0, 300, 6):
        text = TOKENS[start : start + 6]
        exact = family.reference(weights.network, weights, text, kv_cache_dtype)
        errors.append(float(np.abs(model.logits(text) - exact).max() / exact.std()))
    return errors


@pytest.mark.parametrize("kind", ["bf16", "int8"])
def test_it_computes_what_its_reference_computes(path: Path, packed: PackedModel, kind: str) -> None:
    """Logits agree to float32's precision, but for a text where rounding an activation to INT8 falls the other way."""
    with edgellm.load(path, threads=1, kv_cache_dtype=kind) as model:
        assert np.quantile(errors_of(model, packed, kind), 0.8) < 1e-5


def test_its_optional_tensor_is_used_where_there_is_one(tmp_path: Path, packed: PackedModel) -> None:
    convert(make_toy_gguf(tmp_path / "plain.gguf", turns=False), tmp_path / "plain.edgellm")
    plain = open_packed(tmp_path / "plain.edgellm")
    assert "turns" in packed and "turns" not in plain
    with edgellm.load(plain.path, threads=1) as model:
        assert np.quantile(errors_of(model, plain), 0.8) < 1e-5
        assert min(errors_of(model, packed)) > 1e-2


class Chain(toy.Toy):
    """Of the same tensors: the feed-forward part reads what attention gives, without a norm between."""

    def build(self, network: Network, g: GraphBuilder) -> None:
        x = g.embed("embedding", network.width)
        for number, layer in enumerate(network.layers):
            with g.layer(number):
                h = g.norm(x, "norm", layer.norm_epsilon)
                x = g.add(x, swiglu(g, attention(g, h, layer.mixer), layer.ffn))
        h = g.norm(g.select(x), "norm", network.norm_epsilon)
        g.sample(g.product(h, network.head, network.vocabulary, label="head"))

    def reference(
        self, network: Network, weights: Weights, ids: Seq[int], kv_cache_dtype: str = "bf16"
    ) -> NDArray[np.float64]:
        x = reference.embed(weights.matrix("embedding"), np.asarray(ids)).astype(np.float64)
        for number, layer in enumerate(network.layers):
            name = f"layers.{number}"
            h = reference.norm(x, weights.vector(f"{name}.norm"), layer.norm_epsilon)
            h = reference_attention(h, layer.mixer, weights, name, kv_cache_dtype)
            x = x + reference_swiglu(h, layer.ffn, weights, name)
        h = reference.norm(x, weights.vector("norm"), network.norm_epsilon)
        logits: NDArray[np.float64] = reference.matmul(h, weights.matrix(network.head))
        return logits


def test_rows_that_no_norm_wrote_are_quantized(
    library: jit.Library, path: Path, packed: PackedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(families, "_registered", {})
    register(Chain())
    with edgellm.load(path, threads=2) as model:
        assert np.quantile(errors_of(model, packed, family=Chain()), 0.8) < 1e-5
    with runner(library, packed, threads=3) as run:
        assert np.array_equal(logits_in_steps(run, TOKENS, [1] * 300), logits_in_steps(run, TOKENS, [300]))


@pytest.mark.parametrize("sizes", [[1] * 300, [256, 44], [7] * 42 + [6], [100, 1, 199]], ids=["ones", *"abc"])
def test_chunks_equal_the_whole(library: jit.Library, packed: PackedModel, whole: np.ndarray, sizes: list[int]) -> None:
    with runner(library, packed) as run:
        assert np.array_equal(logits_in_steps(run, TOKENS, sizes), whole)


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_threads_do_not_change_a_bit(
    library: jit.Library, packed: PackedModel, whole: np.ndarray, threads: int
) -> None:
    with runner(library, packed, threads=threads) as run:
        assert np.array_equal(logits_in_steps(run, TOKENS, [280] + [1] * 20), whole)


def test_a_gguf_is_loaded_like_any_other(source: Path, model: Model, home: Path) -> None:
    with edgellm.load(source, threads=1) as other:
        assert answer(other, PROMPT) == answer(model, PROMPT)


def test_generating_equals_teacher_forcing(model: Model) -> None:
    ids = list(PROMPT)
    for _ in range(8):
        ids.append(int(np.argmax(model.logits(ids)[-1])))
    assert [piece.token_id for piece in answer(model, PROMPT, replace(PARAMS, max_tokens=8))] == ids[len(PROMPT) :]


def test_requests_together_equal_each_alone(model: Model, path: Path) -> None:
    prompts = [TOKENS[:70], PROMPT, TOKENS[100:103], PROMPT[:11] + TOKENS[:50]]
    streams = [model.generate(prompt, PARAMS) for prompt in prompts]
    together: list[list[Piece]] = [[] for _ in prompts]
    while pieces := [(number, piece) for number, stream in enumerate(streams) if (piece := next(stream, None))]:
        for number, piece in pieces:
            together[number].append(piece)
    for prompt, pieces_together in zip(prompts, together, strict=True):
        with edgellm.load(path, threads=1) as alone:
            assert pieces_together == answer(alone, prompt)


def test_drafts_change_nothing(model: Model) -> None:
    plain = answer(model, PROMPT, replace(PARAMS, max_tokens=100))
    stream = model.generate(PROMPT, replace(PARAMS, max_tokens=100, speculation="on"))
    assert list(stream) == plain
    assert stream.usage.num_drafted_tokens > 0


def test_a_cached_prefix_equals_a_fresh_text(model: Model) -> None:
    fresh = answer(model, TOKENS[:150])
    stream = model.generate(TOKENS[:150], PARAMS)
    assert list(stream) == fresh
    assert stream.usage.num_cached_tokens > 100


def test_a_file_whose_family_nobody_registered_is_refused(
    source: Path, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(families, "_registered", {})
    with pytest.raises(UnsupportedModelError, match="'toy' is not supported; this version runs: llama"):
        convert(source, tmp_path / "toy.edgellm")
    with pytest.raises(PackedFileError, match="'toy' is not supported"):
        open_packed(path)


def test_what_its_metadata_lack_is_named(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "bad.gguf", "toy")
    add_tokenizer(writer)
    writer.add_uint32("toy.depth", 3)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(GGUFError, match=r"metadata toy\.width is missing"):
        convert(tmp_path / "bad.gguf", tmp_path / "bad.edgellm")


def test_profiles_show_its_matrices() -> None:
    """The attention's output waits for the sum that it is added to."""
    config = toy.ToyConfig("toy", 1, 64, 4, 2, 32, 96, 320, 512, tied_head=True)
    labels = [op.label for op in fuse(network_graph(toy.FAMILY.network(config.to_json()))).operations]
    layer = ["norm", "q k v", "attend", "combine", "gate up", "down", "output"]
    assert labels == ["embed", *layer, "norm", "head", "sample"]


def test_a_file_in_the_folder_of_families_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "_registered", {})
    monkeypatch.setattr(families, "__path__", [*families.__path__, str(tmp_path)])
    shutil.copy(toy.__file__, tmp_path / "toy.py")
    try:
        found = find_family("toy")
        assert found.name == "toy" and found is not toy.FAMILY
        with pytest.raises(UnsupportedModelError, match=r"this version runs: llama.*, toy"):
            find_family("toys")
    finally:
        sys.modules.pop("edgellm.families.toy", None)
        vars(families).pop("toy", None)
