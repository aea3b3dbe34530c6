"""Values that share memory are never needed at once, and none reaches into another's."""

from collections.abc import Iterator
from itertools import combinations

import pytest

from edgellm.kernels.ops import MAX_TILE_ROWS, META_BYTES, OWN_ROWS
from edgellm.runtime.fuse import fuse
from edgellm.runtime.graph import Graph, GraphBuilder, Operation, Value
from edgellm.runtime.plan import Place, Plan, StepShape, plan
from tests.edgellm.runtime.random_graphs import CALL, random_graph
from tests.edgellm.runtime.shapes import CONFIGS, Shape

STEP = StepShape(rows=40, logit_rows=10, threads=3, context=512)


def extents(value: Value, place: Place, shape: StepShape) -> Iterator[tuple[int, int]]:
    """The bytes of the work arena that a value takes, as (begin, end)."""
    if not value.is_quantized:
        rows = shape.logit_rows if value.is_selected else shape.rows
        yield place.offset, place.offset + rows * place.stride * 4
        return
    tables = [(place.offset, place.meta, shape.rows)]
    tables += [] if place.own is None else [(place.own, place.own_meta, shape.threads * OWN_ROWS)]
    for codes, meta, count in tables:
        rows = count + MAX_TILE_ROWS - 1  # the last tile may have empty ones
        yield codes, codes + rows * value.width
        yield meta, meta + rows * value.width // 32 * META_BYTES


def own_memory(found: Plan) -> Iterator[tuple[int, int]]:
    """Of the threads, the whole step long."""
    for begin, stride in ((found.scratch, found.scratch_stride), (found.outliers, found.outliers_stride)):
        yield begin, begin + found.shape.threads * stride


def overlap(first: tuple[int, int], second: tuple[int, int]) -> bool:
    return first[0] < second[1] and second[0] < first[1]


def sums(op: Operation) -> dict[Value, object]:
    """What an operation computes in the place of something else -> that."""
    found = {op.output: op.operands["x"]} if op.kind == "add" else {}
    found |= {part.output: part.operands["x"] for part in op.parts if part.epilogue == "add"}
    return {value: x for value, x in found.items() if value is not None}


def check(graph: Graph, found: Plan) -> None:
    written = {value: at for at, op in enumerate(graph.operations) for value in op.writes}
    read = {value: at for at, op in enumerate(graph.operations) for value in op.reads}
    summed = {value: x for op in graph.operations for value, x in sums(op).items()}
    for value, x in summed.items():
        assert found.places[value] == found.places[x]  # type: ignore[index]
    taken = {value: list(extents(value, found.places[value], found.shape)) for value in written}
    lives = {value: (begin, read.get(value, begin) + 1) for value, begin in written.items()}
    for first, second in combinations(written, 2):
        if any(overlap(one, other) for one in taken[first] for other in taken[second]):
            assert summed.get(second) == first or not overlap(lives[first], lives[second]), (first, second)
    assert not any(overlap(one, other) for extents in taken.values() for one, other in combinations(extents, 2))
    values = [extent for extents in taken.values() for extent in extents]
    others = list(own_memory(found))
    assert not any(overlap(one, other) for one in others for other in values)
    assert not any(overlap(one, other) for one, other in combinations(others, 2))
    assert all(0 <= begin < end <= found.work_bytes for begin, end in [*values, *others])


@pytest.mark.parametrize("seed", range(60))
def test_values_that_share_memory_never_live_at_once(seed: int) -> None:
    """Of graphs that nobody would write, plain and fused."""
    for graph in (random_graph(seed), fuse(random_graph(seed))):
        check(graph, plan(graph, STEP))


def test_the_plan_of_a_model_is_sound() -> None:
    shape = Shape("smollm2-135m")
    check(shape.graph, shape.plan)


def test_layers_take_turns_with_the_same_memory() -> None:
    """A model of more layers needs no more of it."""
    found = [Shape(name) for name in CONFIGS]
    for shape in found:
        floats = {value.name: place for value, place in shape.plan.places.items() if not value.is_quantized}
        assert len({place for value, place in shape.plan.places.items() if value.name == "q"}) == 1
        assert len({place.offset for place in floats.values()}) == len(floats) == 3, "residual, q, head"


def builder() -> tuple[GraphBuilder, Value]:
    g = GraphBuilder(1)
    return g, g.embed("embedding", 64)


def test_an_addition_takes_the_place_of_what_it_adds_to() -> None:
    g, x = builder()
    y = g.norm(x, "norm", 1e-5)
    total = g.add(x, y)
    g.kernel("mine", CALL, 64, x=total, y=y)
    places = plan(g.graph(), STEP).places
    assert places[total] == places[x] != places[y]


def test_what_was_added_to_must_not_be_read_again() -> None:
    g, x = builder()
    total = g.add(x, g.norm(x, "norm", 1e-5))
    g.kernel("mine", CALL, 64, x=x, y=total)
    with pytest.raises(AssertionError, match="is read after it was added to"):
        plan(g.graph(), STEP)


def test_a_value_that_is_read_twice_at_once_gives_its_memory_away_once() -> None:
    g, x = builder()
    h = g.norm(x, "norm", 1e-5)
    squared = g.swiglu(h, h)
    first, second = g.norm(x, "norm", 1e-5), g.norm(squared, "norm", 1e-5)
    g.kernel("mine", CALL, 64, x=first, y=second)
    places = plan(g.graph(), STEP).places
    assert places[first] == places[h] != places[second]


def test_all_rows_do_not_get_the_room_of_a_few() -> None:
    """Rows whose logits are wanted are fewer."""
    g, x = builder()
    few = g.norm(g.select(x), "norm", 1e-5)
    g.sample(few)
    every = g.norm(x, "norm", 1e-5)
    g.kernel("mine", CALL, 64, x=every, y=every)
    graph = g.graph()
    found = plan(graph, STEP)
    check(graph, found)
    assert found.places[every] != found.places[few]
