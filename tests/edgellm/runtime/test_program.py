"""A program is a value: written out and read back, or bound to other memory, it is the same."""

import numpy as np
import pytest

from edgellm.backends.cpu import runner as runner_module
from edgellm.backends.cpu.lower import lower
from edgellm.backends.cpu.step import StepLayout
from edgellm.converters.on_the_fly import pack_on_the_fly
from edgellm.families.llama import FAMILY
from edgellm.kernels import jit, ops
from edgellm.kernels.kv_formats import kv_formats
from edgellm.memory.buffers import address
from edgellm.memory.layout import state_layout
from edgellm.packed.read import PackedModel, open_packed
from edgellm.runtime.fuse import fuse
from edgellm.runtime.graph import Graph, GraphBuilder
from edgellm.runtime.plan import plan
from edgellm.runtime.program import RECORDS, Program
from tests.edgellm.runtime.shapes import CONFIGS, STEP, Shape, config, packed_header
from tests.edgellm.test_equalities import logits_in_steps, runner
from tests.tiny import make_tiny_gguf

ARENAS = ("weights", "work", "tables", "step", "blocks.0")
SMALL = config(
    layers=1, width=64, heads=2, kv_heads=2, head_size=32, ffn_width=64, vocabulary=96, context=512,
    rope_theta=1e4, rope_size=32, tied_head=True,
)  # fmt: skip
TOKENS = np.random.default_rng(0).integers(0, 270, 60).tolist()


@pytest.fixture(scope="module", params=CONFIGS)
def shape(request: pytest.FixtureRequest) -> Shape:
    return Shape(request.param)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> PackedModel:
    folder = tmp_path_factory.mktemp("program")
    return open_packed(pack_on_the_fly(make_tiny_gguf(folder / "tiny.gguf", body="Q4_1", tied=False), folder))


def bound(program: Program, *, step: int = 1 << 44) -> np.ndarray:
    """The words for arenas `step` bytes apart, and its own records at 0."""
    bases = {arena: (at + 1) * step for at, arena in enumerate(ARENAS)}
    kernels = {name: -number for number, name in enumerate(sorted(set(program.calls.values())), 1)}
    words = program.bind(bases, kernels)
    records = [at for at, arena in program.places.items() if arena == RECORDS]
    begin = address(words)
    words[records] -= begin
    return words


def test_what_was_written_out_is_read_back(shape: Shape) -> None:
    program, again = shape.program, Program.from_bytes(shape.program.to_bytes())
    assert again.words.dtype == np.int64 and np.array_equal(again.words, program.words)
    assert (again.places, again.calls) == (program.places, program.calls)
    assert (again.labels, again.marks) == (program.labels, program.marks)
    assert again.to_bytes() == program.to_bytes()


def test_what_was_read_back_binds_to_the_same_words(shape: Shape) -> None:
    assert np.array_equal(bound(Program.from_bytes(shape.program.to_bytes())), bound(shape.program))


def test_binding_leaves_the_program_as_it_is(shape: Shape) -> None:
    before = shape.program.words.copy()
    first = bound(shape.program)
    assert np.array_equal(bound(shape.program), first) and np.array_equal(shape.program.words, before)


def test_addresses_are_where_the_program_says_and_nowhere_else(shape: Shape) -> None:
    """Other memory moves exactly the words of places, each as far as its arena."""
    near, far = bound(shape.program, step=1 << 40), bound(shape.program, step=1 << 44)
    moved = {at: ARENAS.index(arena) + 1 for at, arena in shape.program.places.items() if arena != RECORDS}
    expected = np.zeros_like(near)
    expected[list(moved)] = np.array(list(moved.values())) * ((1 << 44) - (1 << 40))
    assert np.array_equal(far - near, expected)
    kernels = sorted(shape.program.calls)
    assert np.all(near[kernels] < 0) and np.all(shape.program.words[kernels] == 0)


def test_places_are_within_their_arenas(shape: Shape) -> None:
    sizes = {
        "weights": max(tensor.begin + tensor.nbytes for tensor in shape.header.table.values()),
        "work": shape.plan.work_bytes,
        "tables": shape.plan.table_bytes,
        "step": shape.step.nbytes,
        "blocks.0": shape.states.groups[0].nbytes,
        RECORDS: shape.program.words.nbytes,
    }
    assert set(shape.program.places.values()) == set(sizes)
    for at, arena in shape.program.places.items():
        assert 0 <= shape.program.words[at] < sizes[arena], (at, arena)


def logits_and_program(library: jit.Library, packed: PackedModel, *, through_bytes: bool) -> tuple[np.ndarray, bytes]:
    """Of a runner with memory of its own."""
    made: list[bytes] = []

    def lower_noting(*args: object) -> Program:
        program = lower(*args)  # type: ignore[arg-type]
        made.append(program.to_bytes())
        return Program.from_bytes(made[-1]) if through_bytes else program

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner_module, "lower", lower_noting)
        with runner(library, packed, threads=2) as run:
            logits = logits_in_steps(run, TOKENS, [50, 1, 9])
    (program,) = made
    return logits, program


def test_a_program_that_was_written_out_runs_the_same(library: jit.Library, packed: PackedModel) -> None:
    plain, program = logits_and_program(library, packed, through_bytes=False)
    again, same = logits_and_program(library, packed, through_bytes=True)
    assert np.array_equal(again, plain)
    assert same == program, "what lies elsewhere in memory has the same program"


def barriers(graph: Graph) -> dict[str, int]:
    """Of the operations of a graph with the tensors of a small Llama, by label."""
    network = FAMILY.network(SMALL.to_json())
    states, header = state_layout(network, kv_formats()["bf16"]), packed_header(network, "int4-g32")
    program = lower(graph, plan(graph, STEP), header, states, StepLayout(STEP, len(states.groups)))
    heads = program.words[: len(program.labels) * ops.OPERATION_WORDS].reshape(-1, ops.OPERATION_WORDS)
    return dict(zip(program.labels, heads[:, ops.HEAD.index("barrier")].tolist(), strict=True))


@pytest.mark.parametrize(
    ("layer", "barrier"),
    [
        ("a product of its own", ops.BARRIER_OF_MANY),
        ("adds to what was normalized", ops.BARRIER),
        ("something comes between", ops.BARRIER),
    ],
)
def test_few_rows_save_a_barrier_where_no_thread_writes_what_another_reads(layer: str, barrier: int) -> None:
    """Every thread normalizes few rows for itself, so the product behind that need not wait, if it writes elsewhere."""
    g = GraphBuilder(1)
    x = g.embed("embedding", 64)
    with g.layer(0):
        h = g.norm(x, "attention.norm", 1e-5)
        if layer == "something comes between":
            x = g.add(x, g.product(g.product(h, "ffn.gate", 64), "ffn.down", 64))
        y = g.product(h, "attention.output", 64, label="the product")
        x = g.add(x, y if layer == "adds to what was normalized" else g.product(y, "ffn.down", 64))
    g.sample(g.product(g.norm(g.select(x), "norm", 1e-5), "embedding", 96))
    assert barriers(fuse(g.graph()))["the product"] == barrier
