"""The same bits every time: threads, chunks, batches and instruction sets never change a logit."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter

from edgellm.backends.base import Rows, run_step
from edgellm.backends.cpu.runner import CPURunner
from edgellm.backends.cpu.team import Team
from edgellm.converters.on_the_fly import pack_on_the_fly
from edgellm.errors import KernelError
from edgellm.families import find_family
from edgellm.kernels import elf, jit
from edgellm.kernels.kv_formats import kv_formats
from edgellm.kernels.targets import ISAS, host_target, target_for
from edgellm.kernels.units import own_units
from edgellm.memory.kv import KVCache
from edgellm.memory.layout import state_layout
from edgellm.memory.sequence import Sequence
from edgellm.packed.read import PackedModel, open_packed
from tests.edgellm.families.tiny_hybrid import FAMILY as HYBRID
from tests.edgellm.families.tiny_hybrid import KINDS, UNIT, make_hybrid_gguf
from tests.tiny import make_tiny_gguf

UNITS = [*own_units(), UNIT]
TOKENS = np.random.default_rng(0).integers(0, 270, 300).tolist()  # longer than a chunk of attention


def kv_cache_dtype(packed: PackedModel) -> str:
    """The llama with a sliding window is the one tested with an INT8 cache."""
    return "int8" if packed.network.config.get("sliding_window") else "bf16"


@contextmanager
def runner(library: jit.Library, packed: PackedModel, *, threads: int = 1) -> Iterator[tuple[CPURunner, KVCache]]:
    layout = state_layout(packed.network, kv_formats()[kv_cache_dtype(packed)])
    cache, team = KVCache(layout, 40), Team(library, threads, processors=2)
    try:
        yield CPURunner(library, team, packed, cache, context=512, max_rows=320, max_logit_rows=320), cache
    finally:
        team.close()
    cache.check_integrity()


def logits_in_steps(run: tuple[CPURunner, KVCache], tokens: list[int], sizes: list[int]) -> np.ndarray:
    """Logits of all tokens, computed in steps of the given sizes."""
    engine, cache = run
    sequence, parts, start = Sequence(cache), [], 0
    for size in sizes:
        chunk = tokens[start : start + size]
        sequence.reserve(start + size)
        run_step(engine, [Rows(sequence, chunk, range(size))])
        parts.append(engine.logits.copy())
        start += size
    assert start == len(tokens)
    sequence.rewind(0)
    return np.concatenate(parts)


@pytest.fixture(scope="module", params=["Q4_0", "Q4_1", "Q8_0", "Q4_1 window", "hybrid"])
def packed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PackedModel:
    folder = tmp_path_factory.mktemp("equal")
    if request.param == "hybrid":
        return open_packed(pack_on_the_fly(make_hybrid_gguf(folder / "tiny.gguf"), folder))
    body, _, window = request.param.partition(" ")

    def change(writer: GGUFWriter) -> None:
        if window:
            writer.add_sliding_window(4)

    path = make_tiny_gguf(folder / "tiny.gguf", body=body, tied=body != "Q8_0", rope_factors=True, change=change)
    return open_packed(pack_on_the_fly(path, folder))


@pytest.fixture(scope="module")
def whole(library: jit.Library, packed: PackedModel) -> np.ndarray:
    """Logits of TOKENS, all in one step, by one thread."""
    with runner(library, packed) as run:
        return logits_in_steps(run, TOKENS, [300])


def test_the_model_is_what_its_reference_computes(library: jit.Library, packed: PackedModel) -> None:
    """Logits agree to float32's precision, but for a text where rounding an activation to INT8 falls the other way."""
    errors = []
    with runner(library, packed) as run:
        for start in range(0, 300, 6):
            text = TOKENS[start : start + 6]
            family = find_family(packed.network.family)
            exact = family.reference(packed.network, packed, text, kv_cache_dtype(packed))
            errors.append(np.abs(logits_in_steps(run, text, [6]) - exact).max() / exact.std())
    assert np.quantile(errors, 0.8) < 1e-5


@pytest.mark.parametrize("kind", KINDS.split())
def test_every_kind_of_layer_is_what_its_reference_computes_however_long_the_text(
    library: jit.Library, tmp_path: Path, kind: str
) -> None:
    """One layer alone, in which hardly a rounding falls the other way: it would stay in the state of what follows."""
    path = make_hybrid_gguf(tmp_path / "tiny.gguf", kinds=kind, layers=1)
    packed = open_packed(pack_on_the_fly(path, tmp_path))
    exact = HYBRID.reference(packed.network, packed, TOKENS)
    with runner(library, packed) as run:
        errors = np.abs(logits_in_steps(run, TOKENS, [300]) - exact).max(1) / exact.std()
    assert np.quantile(errors, 0.9) < 1e-5


def test_decoding_equals_computing_at_once(library: jit.Library, packed: PackedModel, whole: np.ndarray) -> None:
    with runner(library, packed) as run:
        assert np.array_equal(logits_in_steps(run, TOKENS, [1] * 300), whole)


@pytest.mark.parametrize("sizes", [[256, 44], [7] * 42 + [6], [1, 2, 3, 4, 5, 285], [100, 1, 199]], ids=str)
def test_chunks_equal_the_whole(library: jit.Library, packed: PackedModel, whole: np.ndarray, sizes: list[int]) -> None:
    with runner(library, packed) as run:
        assert np.array_equal(logits_in_steps(run, TOKENS, sizes), whole)


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_threads_do_not_change_a_bit(
    library: jit.Library, packed: PackedModel, whole: np.ndarray, threads: int
) -> None:
    with runner(library, packed, threads=threads) as run:
        assert np.array_equal(logits_in_steps(run, TOKENS, [280] + [1] * 20), whole)


def test_sequences_in_one_step_equal_each_alone(library: jit.Library, packed: PackedModel, whole: np.ndarray) -> None:
    """A prefill, a decode and a check of a few tokens share a step; blocks are dealt out of order."""
    with runner(library, packed, threads=2) as (engine, cache):
        first, second, third = (Sequence(cache) for _ in range(3))
        for sequence in (first, second, third):
            sequence.reserve(30)
        for sequence in (third, first, second):
            sequence.reserve(300)
        run_step(engine, [Rows(first, TOKENS[:270])])
        run_step(engine, [Rows(second, TOKENS[:50])])
        first.reserve(300)
        second.reserve(300)
        batch = [
            Rows(first, TOKENS[270:271], [0]),
            Rows(third, TOKENS[:200], [0, 150, 199]),
            Rows(second, TOKENS[50:55], range(5)),
        ]
        run_step(engine, batch)
        together = engine.logits
        assert np.array_equal(together, whole[[270, 0, 150, 199, 50, 51, 52, 53, 54]])
        for sequence in (first, second, third):
            sequence.rewind(0)


@pytest.mark.parametrize("target", [102, 100, 60, 0])
def test_rewinding_forgets(library: jit.Library, packed: PackedModel, whole: np.ndarray, target: int) -> None:
    """What follows where it stands is computed again. A recurrent state goes back one step, or to the begin, as does
    a window that has left blocks behind.
    """
    with runner(library, packed) as (engine, cache):
        sequence = Sequence(cache)
        sequence.reserve(100)
        run_step(engine, [Rows(sequence, TOKENS[:100])])
        sequence.reserve(104)
        run_step(engine, [Rows(sequence, [*TOKENS[100:102], 5, 6])])
        stands = sequence.rewind(target)
        forgets_little = cache.is_recurrent or cache.windows
        assert stands == (0 if target < 100 and forgets_little else 100 if cache.is_recurrent else target)
        sequence.reserve(300)
        run_step(engine, [Rows(sequence, TOKENS[stands:], range(300 - stands))])
        assert np.array_equal(engine.logits, whole[stands:])
        sequence.rewind(0)


def available(isa: str) -> bool:
    try:
        target_for(isa)
    except KernelError:
        return False
    return isa != host_target().isa


@pytest.mark.parametrize("isa", [isa for isa in ISAS if available(isa)])
def test_instruction_sets_do_not_change_a_bit(
    kernel_cache: Path, packed: PackedModel, whole: np.ndarray, isa: str
) -> None:
    with runner(jit.load(kernel_cache, UNITS, isa=isa), packed) as run:
        assert np.array_equal(logits_in_steps(run, TOKENS, [280] + [1] * 20), whole)


def test_the_linker_does_not_change_a_bit(
    kernel_cache: Path, packed: PackedModel, whole: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(elf, "RUNS_HERE", False)  # as on systems that elf.py does not know: LLVM links
    with runner(jit.load(kernel_cache, UNITS), packed) as run:
        assert np.array_equal(logits_in_steps(run, TOKENS, [280] + [1] * 20), whole)
