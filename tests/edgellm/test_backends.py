"""Backends by name, and what the naive one computes of layers with a state of their own."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import edgellm
from edgellm import SamplingParams
from edgellm.backends.base import Rows, run_step
from edgellm.backends.naive.backend import NaiveBackend, NaiveRunner
from edgellm.errors import OptionError
from edgellm.families import register
from edgellm.families.network import GatedFFN, Layer, Network, Recurrent, TensorSpec
from edgellm.kernels import ops, reference
from edgellm.kernels.kv_formats import kv_formats
from edgellm.memory.kv import KVCache
from edgellm.memory.layout import state_layout
from edgellm.memory.sequence import Sequence
from edgellm.runtime.graph import GraphBuilder, KernelCall

TEXT = [5 + (7 * at) % 250 for at in range(60)]


def test_an_unknown_backend_is_refused(tiny_gguf: Path) -> None:
    with pytest.raises(OptionError, match=r"backend 'abacus' must be one of: cpu, naive"):
        edgellm.load(tiny_gguf, backend="abacus")


LOADED = """
import sys
import edgellm
with edgellm.load(sys.argv[1], backend=sys.argv[2]) as model:
    list(model.generate([5, 80], edgellm.SamplingParams(max_tokens=2)))
print(*(name for name in ("cpu", "naive") if f"edgellm.backends.{name}.backend" in sys.modules))
"""


@pytest.mark.parametrize("backend", ["cpu", "naive"])
def test_a_backend_that_is_not_asked_for_is_not_imported(tiny_gguf: Path, backend: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOADED, str(tiny_gguf), backend], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [backend]


def test_the_naive_backend_compiles_nothing(tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGELLM_HOME", str(tmp_path))
    with edgellm.load(tiny_gguf, backend="naive") as model:
        assert len(list(model.generate(TEXT[:3], SamplingParams(max_tokens=2)))) == 2
    assert not list(tmp_path.rglob("*.o"))


def test_backends_do_not_read_each_others_keys_from_disk(tiny_gguf: Path, tmp_path: Path) -> None:
    """They differ in bits: what is cached must be what would be computed."""
    cached = []
    for backend in ("cpu", "naive", "naive", "cpu"):
        with edgellm.load(tiny_gguf, backend=backend, threads=1, prefix_cache=tmp_path) as model:
            stream = model.generate(TEXT, SamplingParams(max_tokens=1))
            list(stream)
            cached.append(stream.usage.num_cached_tokens)
    assert cached == [0, 0, len(TEXT) - 1, len(TEXT) - 1]


@dataclass(frozen=True)
class Fading:
    """A mixer that adds up its inputs, of which half fades with every token."""

    width: int
    name: str = "fading"

    def tensors(self, width: int) -> Iterator[TensorSpec]:
        yield TensorSpec("weight", (width,))

    @property
    def state(self) -> Recurrent:
        return Recurrent((2, self.width // 2))


def fading_row(x: np.ndarray, state: np.ndarray, *, weight: np.ndarray, half: float) -> np.ndarray:
    state[:] = half * state + x.reshape(state.shape)
    return weight * state.reshape(-1)


class Toy:
    """A family of one kind of layer, of which no kernel is compiled here."""

    name = "toy"
    record = ops.Record(*ops.HEAD, "x", "out", "state", "weight", "half")

    def build(self, network: Network, g: GraphBuilder) -> None:
        x = g.embed("embedding", network.width)
        call = KernelCall("toy", Path("toy.py"), self.record, fading_row)
        for number, layer in enumerate(network.layers):
            with g.layer(number):
                h = g.norm(x, "fading.norm", layer.norm_epsilon)
                weight = g.tensor("fading.weight")
                x = g.add(x, g.kernel("fading", call, network.width, x=h, weight=weight, state=g.state, half=0.5))
        g.sample(g.product(g.norm(g.select(x), "norm", 1e-5), network.head, network.vocabulary))


class ToyModel:
    """A packed file of it, as it were."""

    def __init__(self) -> None:
        layers = (Layer(Fading(32), GatedFFN(32), 1e-5),) * 2
        self.network = Network("toy", {}, 32, 270, 512, tied_head=True, norm_epsilon=1e-5, layers=layers)
        self.rng = np.random.default_rng(0)
        self.tensors = {spec.name: self.rng.standard_normal(spec.shape) for spec in self.network.tensors()}

    def matrix(self, name: str) -> np.ndarray:
        return self.tensors[name].astype(np.float32)

    vector = matrix

    def __contains__(self, name: str) -> bool:
        return self.tensors[name].ndim == 1


@pytest.fixture
def toy() -> tuple[ToyModel, NaiveRunner, KVCache]:
    register(Toy())  # type: ignore[arg-type]
    model = ToyModel()
    cache = KVCache(state_layout(model.network, kv_formats()["bf16"]), 8)
    runner = NaiveBackend().open(model, cache, context=256, max_rows=64, max_logit_rows=64)  # type: ignore[arg-type]
    return model, runner, cache


def toy_logits(model: ToyModel) -> np.ndarray:
    x = model.matrix("embedding").astype(np.float64)[TEXT]
    fades = np.tril(0.5 ** np.maximum(np.subtract.outer(np.arange(60), np.arange(60)), 0))
    for number in range(2):
        h = reference.norm(x, model.vector(f"layers.{number}.fading.norm"), 1e-5)
        x = x + model.vector(f"layers.{number}.fading.weight") * (fades @ h)
    logits: np.ndarray = reference.matmul(reference.norm(x, model.vector("norm"), 1e-5), model.matrix("embedding"))
    return logits


@pytest.mark.parametrize("sizes", [[60], [1] * 60, [31, 1, 1, 27]], ids=str)
def test_a_familys_own_kernel_is_its_twin_and_its_state_goes_on(
    toy: tuple[ToyModel, NaiveRunner, KVCache], sizes: list[int]
) -> None:
    """Two texts in every step, of which the other is taken back now and then."""
    model, runner, cache = toy
    sequence, other = Sequence(cache), Sequence(cache)
    found = []
    for size in sizes:
        begin, otherwise = sequence.length, other.length
        sequence.reserve(begin + size)
        other.reserve(otherwise + 2)
        tokens = TEXT[begin : begin + size]
        mixed = [Rows(other, TEXT[otherwise : otherwise + 2], [1]), Rows(sequence, tokens, range(size))]
        run_step(runner, mixed)
        found.append(runner.logits[1:])
        if otherwise > 6:
            other.rewind(otherwise)
    logits, exact = np.concatenate(found), toy_logits(model)
    assert np.quantile(np.abs(logits - exact).max(1), 0.9) < 1e-5 * exact.std()
    assert np.abs(logits - exact).max() < 0.1 * exact.std()
    for text in (sequence, other):
        text.rewind(0)
    cache.check_integrity()
