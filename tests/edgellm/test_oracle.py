"""The compiled kernels against the naive backend, over blocks of the cache, chunks of attention and windows."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import pytest
from gguf import GGUFWriter

from edgellm.backends.base import Backend, Rows, Runner, run_step
from edgellm.backends.cpu.backend import CPUBackend
from edgellm.backends.cpu.rope import RopeTables
from edgellm.backends.naive.backend import NaiveBackend
from edgellm.converters.on_the_fly import pack_on_the_fly
from edgellm.families.llama import FAMILY as LLAMA
from edgellm.kernels.jit import Library
from edgellm.kernels.kv_formats import kv_formats
from edgellm.kernels.ops import CHUNK, KV_BLOCK
from edgellm.memory.kv import KVCache
from edgellm.memory.layout import state_layout
from edgellm.memory.sequence import Sequence
from edgellm.packed.read import PackedModel, open_packed
from edgellm.runtime.build import network_graph
from edgellm.runtime.fuse import fuse
from edgellm.runtime.plan import StepShape, plan
from tests.edgellm.runtime.shapes import CONFIGS
from tests.tiny import make_tiny_gguf

CONTEXT = 1024
WINDOW = 100  # tokens: its edge goes through blocks, and now and then is in another chunk than the row
# Steps that end on and around the edges of blocks and chunks, and take few rows or many, which are split differently
STEPS = {
    300: ([300], [31, 1, 1, 31, 192, 1, 43], [30, 3, 30, 192, 2, 43], [32] * 8 + [44], [33, 222, 1, 1, 1, 20, 20, 2]),
    600: ([600], [255, 1, 1, 254, 1, 1, 87], [256, 256, 88], [257, 254, 2, 87], [224, 64, 223, 1, 1, 87]),
}
assert (KV_BLOCK, CHUNK) == (32, 256)
# Rows on and around the edges of blocks, and of what a window shows of them
EDGES = sorted(
    {edge + by for edge in range(0, 600, KV_BLOCK) for by in (-1, 0, 1, WINDOW - 1, WINDOW) if edge + by >= 0}
)


@dataclass
class Run:
    """A text on a backend."""

    runner: Runner
    sequence: Sequence

    def step(self, tokens: list[int]) -> np.ndarray:
        """Logits of the text's next tokens."""
        self.sequence.reserve(self.sequence.length + len(tokens))
        run_step(self.runner, [Rows(self.sequence, tokens, range(len(tokens)))])
        return self.runner.logits.copy()


def kept(run: Run, position: int) -> np.ndarray:
    """Keys and values of a position, float32 [layer][K][2][E]."""
    cache, (index, slot) = run.sequence.cache, divmod(position, KV_BLOCK)
    found = []
    for layer, group in cache.layout.group_of.items():
        place, block = cache.layout.layer(layer), cache.block_view(run.sequence.blocks[index], group)
        for head in range(place.state.kv_heads):
            begin = place.offset + head * place.head_stride
            view = block[begin : begin + place.head_stride]
            found.append([part[slot] for part in cache.layout.kv_format.read(view, place.state.head_size)])
    return np.array(found)


def resume(run: Run, other: Run, position: int) -> None:
    """Stand at a position with the keys and values of another's text, bit by bit."""
    run.sequence.advance(position - run.sequence.length)
    run.sequence.reserve(position + 1)
    mine, its = run.sequence.cache, other.sequence.cache
    for group in range(len(mine.layout.groups)):
        tables = run.sequence.tables(group)
        for place, ours, theirs in zip(tables, run.sequence.blocks, other.sequence.blocks, strict=False):
            if mine.has_block(ours, group) and its.has_block(theirs, group):
                mine.store.write(group, place, its.block_view(theirs, group))


@contextmanager
def started(backend: Backend, packed: PackedModel, kv_cache_dtype: str) -> Iterator[Run]:
    cache = KVCache(state_layout(packed.network, kv_formats()[kv_cache_dtype]), 30, make_store=backend.store)
    runner = backend.open(packed, cache, context=CONTEXT, max_rows=600, max_logit_rows=600)
    sequence = Sequence(cache)
    yield Run(runner, sequence)
    sequence.rewind(0)
    cache.check_integrity()
    runner.close()


def random_text(seed: int, length: int) -> list[int]:
    text: list[int] = np.random.default_rng(seed).integers(0, 270, length).tolist()
    return text


@dataclass
class Case:
    """A tiny Llama, and a text for it."""

    packed: PackedModel
    kv_cache_dtype: str
    text: list[int]


CASES = {"bf16": ("bf16", None, False, 600), "int8 window": ("int8", WINDOW, True, 600),
         "int8": ("int8", None, True, 300), "bf16 window": ("bf16", WINDOW, False, 300)}  # fmt: skip


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("oracle")
    kv_cache_dtype, window, rope_factors, length = CASES[request.param]

    def change(writer: GGUFWriter) -> None:
        if window:
            writer.add_sliding_window(window)

    path = make_tiny_gguf(
        folder / "tiny.gguf", seed=1, body="Q4_1", rope_factors=rope_factors, context=CONTEXT, change=change
    )
    return Case(open_packed(pack_on_the_fly(path, folder)), kv_cache_dtype, random_text(4, length))


@pytest.fixture(scope="module")
def cpu(library: Library) -> Iterator[CPUBackend]:
    backend = CPUBackend(library, threads=2, processors=2)
    yield backend
    backend.close()


def differences(cpu: CPUBackend, case: Case, text: list[int], positions: Iterable[int]) -> np.ndarray:
    """At each position the largest difference of the logits, and of the keys and values that the row leaves: [..][2].

    In standard deviations. Both compute the row from the same past, the kernels' bit by bit: else the first activation
    that is rounded to INT8 the other way changes all that comes after it, and whole texts differ by up to 6e-2.
    """
    found = {}
    with (
        started(cpu, case.packed, case.kv_cache_dtype) as fast,
        started(NaiveBackend(), case.packed, case.kv_cache_dtype) as naive,
    ):
        for size in STEPS[len(text)][1]:
            begin = fast.sequence.length
            logits = fast.step(text[begin : begin + size])
            for position in sorted({*positions} & {*range(begin, begin + size)}):
                resume(naive, fast, position)
                exact = naive.step([text[position]])[0]
                pairs = (logits[position - begin], exact), (kept(fast, position), kept(naive, position))
                found[position] = [np.abs(ours - expected).max() / expected.std() for ours, expected in pairs]
    return np.array([found[position] for position in positions])


def test_every_row_is_what_the_naive_backend_makes_of_the_same_past(cpu: CPUBackend, case: Case) -> None:
    """In 9,600 rows of 16 texts of other models, logits agreed to 1e-5 but for 4 % of the rows, keys and values to the
    bit but for 6 %: where a rounding falls the other way, which moved logits by up to 4.2e-2 and a key or value by up
    to 5.4e-2. That may happen to any row, but hardly to the row at one place in each of three texts.
    """
    length = len(case.text)
    whole = differences(cpu, case, case.text, range(length))
    assert (whole.max(0) < (5e-2, 6e-2)).all(), whole.argmax(0)
    assert (np.quantile(whole, 0.9, axis=0) <= (5e-6, 0)).all()
    edges = [edge for edge in EDGES if edge < length]
    others = [differences(cpu, case, random_text(seed, length), edges) for seed in (5, 6)]
    least = np.min([whole[edges], *others], axis=0)
    assert (least.max(0) <= (5e-6, 0)).all(), np.array(edges)[least.argmax(0)]


def test_steps_that_end_anywhere_give_the_same_bits(cpu: CPUBackend, case: Case) -> None:
    found = []
    for sizes in STEPS[len(case.text)]:
        with started(cpu, case.packed, case.kv_cache_dtype) as run:
            ends = np.cumsum(sizes)
            assert ends[-1] == len(case.text)
            parts = [run.step(case.text[end - size : end]) for end, size in zip(ends, sizes, strict=True)]
            found.append(np.concatenate(parts))
    assert all(np.array_equal(logits, found[0]) for logits in found)


def test_the_naive_backend_is_the_familys_reference(case: Case) -> None:
    """Over blocks and steps; both round alike in float64, so that only the rounding of logits to float32 is left."""
    text = case.text[:270]
    exact = LLAMA.reference(case.packed.network, case.packed, text, case.kv_cache_dtype)
    with started(NaiveBackend(), case.packed, case.kv_cache_dtype) as naive:
        logits = np.concatenate([naive.step(text[:100]), naive.step(text[100:101]), naive.step(text[101:])])
    assert np.abs(logits - exact).max() < 2.0**-24 * np.abs(exact).max()


class Factors:
    """Weights of which only the rope's factors are asked for."""

    def __init__(self, factors: np.ndarray) -> None:
        self.factors = factors

    def vector(self, name: str) -> np.ndarray:
        return self.factors

    def __contains__(self, name: str) -> bool:
        return name == "rope_factors"


def test_the_tables_turn_by_the_formula_at_far_positions() -> None:
    """Of a head of 64, 48 are rotated; positions count a quarter, and each pair has a factor."""
    shape = {"rope_theta": 5e5, "rope_size": 48, "rope_scale": 4.0, "head_size": 64, "context": 131072}
    network = LLAMA.network(replace(CONFIGS["llama-1b"], layers=1, **shape).to_json())
    made = plan(fuse(network_graph(network)), StepShape(rows=1, logit_rows=1, threads=1, context=131072))
    factors = np.random.default_rng(0).uniform(1, 8, 24).astype(np.float32)
    tables = RopeTables(made, Factors(factors))  # type: ignore[arg-type]
    tables.ensure(100_001)
    (offset,) = made.rope.values()
    table = tables.memory[offset:].view(np.float32)[: 131072 * 128].reshape(-1, 2, 64)
    for position in (0, 1, 511, 512, 8000, 99_999, 100_000):
        for pair in range(24):
            angle = position / 4.0 / float(factors[pair]) * 5e5 ** (-2 * pair / 48)
            cosines, sines = table[position, :, 2 * pair : 2 * pair + 2].tolist()
            assert cosines == pytest.approx([math.cos(angle)] * 2, abs=1e-7)
            assert sines == pytest.approx([-math.sin(angle), math.sin(angle)], abs=1e-7)
        assert (table[position, 0, 48:] == 1).all() and not table[position, 1, 48:].any()
