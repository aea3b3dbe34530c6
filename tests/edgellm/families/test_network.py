"""What a network is made of, which configs are refused, and how families are found."""

from collections.abc import Mapping
from typing import Any

import pytest

from edgellm import families
from edgellm.errors import PackedFileError, UnsupportedModelError
from edgellm.families import find_family, register
from edgellm.families.llama import FAMILY as LLAMA
from edgellm.families.llama import LlamaConfig
from edgellm.families.network import KeysValues, Network, TensorSpec
from edgellm.packed.header import _read_network

CONFIG: dict[str, Any] = {
    "architecture": "llama", "layers": 2, "width": 64, "heads": 4, "kv_heads": 2, "head_size": 32, "ffn_width": 96,
    "vocabulary": 271, "context": 512, "rope_theta": 1e4, "rope_size": 32, "rope_scale": 1.0, "norm_epsilon": 1e-5,
    "tied_head": False, "sliding_window": None,
}  # fmt: skip


def network(**changes: object) -> Network:
    return LLAMA.network(CONFIG | changes)


def layer_tensors(number: int) -> list[tuple[str, tuple[int, ...]]]:
    parts = [
        ("attention.norm", (64,)), ("attention.q", (128, 64)), ("attention.k", (64, 64)), ("attention.v", (64, 64)),
        ("attention.output", (64, 128)),
        ("ffn.norm", (64,)), ("ffn.gate", (96, 64)), ("ffn.up", (96, 64)), ("ffn.down", (64, 96)),
    ]  # fmt: skip
    return [(f"layers.{number}.{name}", shape) for name, shape in parts]


def test_tensors_are_in_the_order_in_which_a_step_reads_them() -> None:
    found = [(spec.name, spec.shape) for spec in network().tensors()]
    layers = [*layer_tensors(0), *layer_tensors(1)]
    assert found == [("embedding", (271, 64)), *layers, ("norm", (64,)), ("head", (271, 64)), ("rope_factors", (16,))]


def test_matrices_are_what_is_quantized_and_vectors_the_rest_that_must_be_there() -> None:
    layers = [*layer_tensors(0), *layer_tensors(1)]
    matrices = {name: shape for name, shape in layers if len(shape) == 2}
    assert list(network().matrices().items()) == list({"embedding": (271, 64), **matrices, "head": (271, 64)}.items())
    vectors = {name: shape for name, shape in layers if len(shape) == 1}
    assert list(network().vectors().items()) == list({**vectors, "norm": (64,)}.items())
    optional = [spec for spec in network().tensors() if spec.is_optional]
    assert optional == [TensorSpec("rope_factors", (16,), is_optional=True)]


def test_a_tied_head_is_the_embedding() -> None:
    assert network().head == "head" and "head" in network().matrices()
    tied = network(tied_head=True)
    assert tied.head == "embedding" and "head" not in tied.matrices()


@pytest.mark.parametrize("window", [None, 4])
def test_every_layer_keeps_keys_and_values(window: int | None) -> None:
    assert network(sliding_window=window).states() == dict.fromkeys((0, 1), KeysValues(2, 32, window))


def test_every_tensor_has_a_name_in_gguf_of_its_own() -> None:
    names = [LLAMA.gguf_name(spec.name) for spec in network().tensors()]
    assert len(set(names)) == len(names)
    assert names[:3] == ["token_embd.weight", "blk.0.attn_norm.weight", "blk.0.attn_q.weight"]


def test_a_config_makes_the_same_network_again() -> None:
    assert LLAMA.network(network().config) == network()
    assert network(sliding_window=8) != network()


def without(*names: str) -> Mapping[str, object]:
    return {name: value for name, value in CONFIG.items() if name not in names}


HOSTILE: dict[str, tuple[Mapping[str, object], str]] = {
    "no layers": (CONFIG | {"layers": 0}, r"layers = 0 must be a count in 1\.\.4096"),
    "negative": (CONFIG | {"heads": -4}, r"heads = -4 must be a count in 1\.\.16777216"),
    "millions of layers": (CONFIG | {"layers": 10**7}, r"layers = 10000000 must be a count in 1\.\.4096"),
    "an overflowing product": (CONFIG | {"vocabulary": 1 << 62}, r"vocabulary = \d+ must be a count"),
    "true for one": (CONFIG | {"layers": True}, "layers = True must be a count"),
    "a text": (CONFIG | {"width": "64"}, "width = '64' must be a count"),
    "a fraction": (CONFIG | {"width": 64.0}, r"width = 64\.0 must be a count"),
    "nothing": (CONFIG | {"width": None}, "width = None must be a count"),
    "a list": (CONFIG | {"ffn_width": [96, 96]}, r"ffn_width = \[96, 96\] must be a count"),
    "a window of nothing": (CONFIG | {"sliding_window": 0}, "sliding_window = 0 must be a count"),
    "not a number": (CONFIG | {"rope_theta": float("nan")}, "rope_theta = nan must be a positive finite number"),
    "infinite": (CONFIG | {"rope_scale": float("inf")}, "rope_scale = inf must be a positive finite number"),
    "zero epsilon": (CONFIG | {"norm_epsilon": 0.0}, r"norm_epsilon = 0\.0 must be a positive finite number"),
    "a count for a number": (CONFIG | {"rope_theta": 10000}, "rope_theta = 10000 must be a positive finite number"),
    "one for true": (CONFIG | {"tied_head": 1}, "tied_head = 1 must be true or false"),
    "an unknown entry": (CONFIG | {"experts": 8}, r"expected the entries .*found .*'experts'"),
    "a missing entry": (without("heads"), r"expected the entries .*'heads'"),
    "another architecture's": ({"architecture": "llama", "layers": 2}, "expected the entries"),
    "uneven heads": (CONFIG | {"kv_heads": 3}, "4 query heads do not share 3 key/value heads evenly"),
    "a ragged head": (CONFIG | {"head_size": 48}, "head size 48 is not a multiple of 32"),
    "a huge head": (CONFIG | {"head_size": 288}, "head size 288 is more than the 256 that the kernels take"),
    "an odd rotation": (CONFIG | {"rope_size": 31}, "rope size 31 is odd or larger than the head size 32"),
    "a long rotation": (CONFIG | {"rope_size": 34}, "rope size 34 is odd or larger than the head size 32"),
    "a ragged width": (CONFIG | {"width": 65}, "width 65 is not a multiple of 32"),
    "a ragged ffn": (CONFIG | {"ffn_width": 100}, "ffn width 100 is not a multiple of 32"),
}


@pytest.mark.parametrize(("config", "words"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_configs_are_refused_in_words(config: dict[str, Any], words: str) -> None:
    with pytest.raises(UnsupportedModelError, match=words):
        LLAMA.network(config)
    with pytest.raises(PackedFileError, match=words):
        _read_network(config)


def test_an_entry_with_a_default_may_be_missing() -> None:
    assert LLAMA.network(without("sliding_window")) == network()


def test_a_config_is_written_and_read_back() -> None:
    config = LlamaConfig.from_json(CONFIG)
    assert config.to_json() == CONFIG and LlamaConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize("name", ["mamba", "base", "network", "Llama", "", "llama.llama", "x" * 1000])
def test_an_unknown_architecture_is_refused_with_the_known_ones(name: str) -> None:
    """Other files of the folder are not families."""
    with pytest.raises(UnsupportedModelError, match=r"is not supported; this version runs: llama") as caught:
        find_family(name)
    assert len(str(caught.value)) < 300


class Other:
    """As much of a family as it takes to be found."""

    def __init__(self, name: str) -> None:
        self.name = name


def test_a_registered_family_is_found_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "_registered", {})
    other, newer, own = Other("other-one"), Other("other-one"), Other("llama")
    register(other)  # type: ignore[arg-type]
    assert find_family("other-one") is other
    assert find_family("llama") is LLAMA
    with pytest.raises(UnsupportedModelError, match=r"this version runs: llama.*, other-one"):
        find_family("nothing")
    register(newer)  # type: ignore[arg-type]
    assert find_family("other-one") is newer, "the last of a name counts"
    register(own)  # type: ignore[arg-type]
    assert find_family("llama") is own, "also before one of edgellm's own"
