"""Backends by name, and what the naive one computes of layers with a state of their own."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import edgellm
from edgellm import SamplingParams
from edgellm.backends.base import Rows, run_step
from edgellm.backends.naive.backend import NaiveBackend
from edgellm.converters.on_the_fly import pack_on_the_fly
from edgellm.errors import OptionError
from edgellm.kernels.kv_formats import kv_formats
from edgellm.memory.kv import KVCache
from edgellm.memory.layout import state_layout
from edgellm.memory.sequence import Sequence
from edgellm.packed.read import PackedModel, open_packed
from tests.edgellm.families.hybrid import FAMILY as HYBRID
from tests.edgellm.families.tiny_hybrid import make_hybrid_gguf

TEXT = [5 + (7 * at) % 250 for at in range(60)]


def test_an_unknown_backend_is_refused(tiny_gguf: Path) -> None:
    with pytest.raises(OptionError, match=r"device 'abacus' must be one of: cpu, naive"):
        edgellm.load(tiny_gguf, device="abacus")


LOADED = """
import sys
import edgellm
with edgellm.load(sys.argv[1], device=sys.argv[2]) as model:
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
    with edgellm.load(tiny_gguf, device="naive") as model:
        assert len(list(model.generate(TEXT[:3], SamplingParams(max_tokens=2)))) == 2
    assert not list(tmp_path.rglob("*.o"))


def test_backends_do_not_read_each_others_keys_from_disk(tiny_gguf: Path, tmp_path: Path) -> None:
    """They differ in bits: what is cached must be what would be computed."""
    cached = []
    for backend in ("cpu", "naive", "naive", "cpu"):
        with edgellm.load(tiny_gguf, device=backend, threads=1, prefix_cache_dir=tmp_path) as model:
            stream = model.generate(TEXT, SamplingParams(max_tokens=1))
            list(stream)
            cached.append(stream.usage.num_cached_tokens)
    assert cached == [0, 0, len(TEXT) - 1, len(TEXT) - 1]


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> PackedModel:
    folder = tmp_path_factory.mktemp("hybrid")
    return open_packed(pack_on_the_fly(make_hybrid_gguf(folder / "hybrid.gguf"), folder))


def hybrid_logits(packed: PackedModel, sizes: list[int]) -> np.ndarray:
    """Of TEXT in steps of these sizes, in each of which another text goes on, of which half is taken back."""
    cache = KVCache(state_layout(packed.network, kv_formats()["bf16"]), 16)
    runner = NaiveBackend().open(packed, cache, context=256, max_rows=64, max_logit_rows=64)
    sequence, other, found = Sequence(cache), Sequence(cache), []
    for size in sizes:
        begin = sequence.length
        sequence.reserve(begin + size)
        other.reserve(other.length + 2)
        run_step(runner, [Rows(other, [9, 8], [1]), Rows(sequence, TEXT[begin : begin + size], range(size))])
        found.append(runner.logits[1:])
        if begin % 2:
            other.accept(0)
    for text in (sequence, other):
        text.rewind(0)
    cache.check_integrity()
    cache.check_nothing_is_held()
    return np.concatenate(found)


def test_a_familys_own_kernels_are_their_twins_and_states_go_on(hybrid: PackedModel) -> None:
    """States are float32, which moved logits by 3.3e-7 standard deviations at most."""
    exact, whole = HYBRID.reference(hybrid.network, hybrid, TEXT), hybrid_logits(hybrid, [60])
    assert np.abs(whole - exact).max() < 1e-6 * exact.std()
    for sizes in ([1] * 60, [31, 1, 1, 27]):
        assert np.array_equal(hybrid_logits(hybrid, sizes), whole)
