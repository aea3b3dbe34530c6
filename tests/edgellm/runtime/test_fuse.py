"""Every pass joins what it says it joins, leaves the rest, and gives a graph that means the same."""

from pathlib import Path

import pytest

from edgellm.families.llama import FAMILY
from edgellm.families.network import Rope
from edgellm.kernels.ops import HEAD, Record
from edgellm.runtime.build import network_graph
from edgellm.runtime.fuse import (
    Pass,
    fuse,
    fuse_epilogues,
    fuse_norms,
    fuse_products,
    fuse_swiglu,
    split_attention,
)
from edgellm.runtime.graph import (
    Graph,
    GraphBuilder,
    KernelCall,
    LayerState,
    Mark,
    Operation,
    Part,
    RopeTable,
    Tensor,
    Value,
)
from edgellm.runtime.plan import plan
from tests.edgellm.runtime.meaning import Names, meaning
from tests.edgellm.runtime.random_graphs import random_graph
from tests.edgellm.runtime.shapes import CONFIGS, STEP

PASSES = (fuse_norms, fuse_swiglu, fuse_epilogues, fuse_products, split_attention)
ROPE = Rope(1e4, 32)
LLAMA = network_graph(FAMILY.network(CONFIGS["smollm2-135m"].to_json()))


class Builder(GraphBuilder):
    """Of a graph in layer 0, whose x is the embedding."""

    def __init__(self) -> None:
        super().__init__(1)
        self.x = self.embed("embedding", 64)

    def reader(self, *values: Value) -> None:
        """A kernel that reads values, so that others may not."""
        call = KernelCall("reader", Path("reader.py"), Record(*HEAD), twin=lambda: None)
        self.kernel("reader", call, 64, **{f"x{at}": value for at, value in enumerate(values)})

    def attended(self, x: Value) -> Value:
        with self.layer(0):
            q, k, v = (self.product(x, f"attention.{which}", 64) for which in "qkv")
            q, k = self.rotate(q, ROPE, 32, scale=0.5), self.rotate(k, ROPE, 32)
            return self.attend(q, k, v, heads=2, kv_heads=2, head_size=32, window=None)


def kinds(graph: Graph) -> str:
    return " ".join(op.kind for op in graph.operations)


def the(graph: Graph, kind: str) -> Operation:
    (found,) = [op for op in graph.operations if op.kind == kind]
    return found


def epilogues(graph: Graph) -> list[str]:
    """Of every product, those of its parts."""
    return [" ".join(part.epilogue for part in op.parts) for op in graph.operations if op.kind == "product"]


def test_a_norm_writes_what_products_read() -> None:
    g = Builder()
    h = g.norm(g.x, "norm", 1e-5)
    g.reader(g.product(h, "a", 32), g.product(h, "b", 32))
    graph = fuse_norms(g.graph())
    assert kinds(graph) == "embed norm product product reader"
    norm, products = graph.operations[1], graph.operations[2:4]
    assert norm.output is not None and norm.output.is_quantized
    assert all(product.operands["x"] == norm.output for product in products)
    assert norm.operands == {"x": g.x, "weight": Tensor("norm"), "epsilon": 1e-5, "width": 64, "selected": 0}


def test_a_norm_reads_the_rows_that_are_selected() -> None:
    g = Builder()
    g.sample(g.product(g.norm(g.select(g.x), "norm", 1e-5), "head", 96))
    graph = fuse_norms(g.graph())
    assert kinds(graph) == "embed norm product sample"
    norm = the(graph, "norm")
    assert norm.operands["x"] == g.x and norm.operands["selected"] == 1
    assert norm.marks == (Mark("layer", 1),)


def test_selected_rows_that_others_read_too_stay() -> None:
    g = Builder()
    selected = g.select(g.x)
    g.reader(selected, g.product(g.norm(selected, "norm", 1e-5), "head", 96))
    graph = fuse_norms(g.graph())
    assert kinds(graph) == "embed select norm product reader"
    assert the(graph, "norm").operands["x"] == selected and the(graph, "norm").operands["selected"] == 0


def test_a_norm_that_is_read_twice_stays() -> None:
    g = Builder()
    h = g.norm(g.x, "norm", 1e-5)
    g.reader(h, g.product(h, "a", 32))
    graph = g.graph()
    assert kinds(fuse_norms(graph)) == kinds(graph) == "embed norm quantize product reader"


def test_gate_and_up_are_one_product_that_activates() -> None:
    g = Builder()
    gate, up = (g.product(g.x, f"ffn.{which}", 96) for which in ("gate", "up"))
    g.reader(g.product(g.swiglu(gate, up), "ffn.down", 64))
    before = g.graph()
    graph = fuse_swiglu(before)
    assert kinds(graph) == "embed quantize product product reader"
    fused, down = graph.operations[2:4]
    activated = before.operations[5].output
    assert fused.parts == (Part("swiglu", activated, {"weight": Tensor("ffn.gate"), "up": Tensor("ffn.up")}),)
    assert fused.operands == {"x": graph.operations[1].output} and fused.output is None
    assert down.operands["x"] == activated
    assert fused.label == "gate up"


def test_gate_and_up_of_different_rows_stay() -> None:
    g = Builder()
    gate, up = g.product(g.x, "ffn.gate", 96), g.product(g.norm(g.x, "norm", 1e-5), "ffn.up", 96)
    g.reader(g.product(g.swiglu(gate, up), "ffn.down", 64))
    graph = g.graph()
    assert fuse_swiglu(graph) == graph


@pytest.mark.parametrize("also", ["gate", "activated"])
def test_what_others_read_too_is_not_fused_away(also: str) -> None:
    g = Builder()
    gate, up = (g.product(g.x, f"ffn.{which}", 96) for which in ("gate", "up"))
    activated = g.swiglu(gate, up)
    g.reader(g.product(activated, "ffn.down", 64), gate if also == "gate" else activated)
    graph = g.graph()
    assert fuse_swiglu(graph) == graph


def test_a_product_is_added_to_the_stream() -> None:
    g = Builder()
    total = g.add(g.x, g.product(g.norm(g.x, "norm", 1e-5), "output", 64))
    g.reader(total)
    graph = fuse_epilogues(g.graph())
    assert kinds(graph) == "embed norm quantize product reader"
    assert the(graph, "product").parts == (Part("add", total, {"weight": Tensor("output"), "x": g.x}),)


def test_a_product_to_which_something_is_added_is_stored() -> None:
    """Only y of x + y comes from the product at hand: x must have its place already."""
    g = Builder()
    h = g.product(g.x, "a", 64)
    g.reader(g.add(h, g.x))
    graph = fuse_epilogues(g.graph())
    assert kinds(graph) == "embed quantize product add reader"
    assert the(graph, "product").parts == (Part("store", h, {"weight": Tensor("a")}),)


def test_queries_keys_and_values_go_where_attention_finds_them() -> None:
    g = Builder()
    g.reader(g.attended(g.x))
    before = g.graph()
    graph = fuse_epilogues(before)
    assert kinds(graph) == "embed quantize product product product attend reader"
    query, key, value = (op.parts for op in graph.operations[2:5])
    table, state = RopeTable(ROPE, 32), LayerState(0)
    weight = {which: Tensor(f"layers.0.attention.{which}") for which in "qkv"}
    turned = {"weight": weight["q"], "rope": table, "head_size": 32, "scale": 0.5, "state": state}
    assert query == (Part("query", the(graph, "attend").operands["q"], turned),)  # type: ignore[arg-type]
    assert key == (Part("key", None, {"weight": weight["k"], "rope": table, "head_size": 32, "state": state}),)
    assert value == (Part("value", None, {"weight": weight["v"], "state": state, "head_size": 32}),)


def test_what_else_becomes_of_a_product_is_stored() -> None:
    g = Builder()
    g.sample(g.product(g.x, "head", 96, label="logits"))
    graph = fuse_epilogues(g.graph())
    (part,) = the(graph, "product").parts
    assert part == Part("store", the(graph, "sample").operands["logits"], {"weight": Tensor("head")})  # type: ignore[arg-type]


@pytest.mark.parametrize("order", ["in order", "turned round"])
def test_branches_side_by_side_are_added_when_all_is_there(order: str) -> None:
    """Both read the stream before anything is added to it, and the sum that is first taken may be of the last."""
    g = Builder()
    a = g.product(g.norm(g.x, "a.norm", 1e-5), "a", 64)
    b = g.product(g.norm(g.x, "b.norm", 1e-5), "b", 64)
    first, last = (a, b) if order == "in order" else (b, a)
    total = g.add(g.add(g.x, first), last)
    g.reader(total)
    graph, names = g.graph(), Names()
    fused = fuse(graph)
    assert epilogues(fused) == ["add", "add"]
    assert meaning(fused, names).values[total] == meaning(graph, names).values[total]
    plan(fused, STEP)  # which refuses to add to what is read later


def test_neighbours_of_the_same_rows_are_one_product() -> None:
    g = Builder()
    a, b = (g.product(g.x, which, 32) for which in "ab")
    c = g.product(a, "c", 32)
    d = g.product(g.x, "d", 32)
    g.reader(b, c, d)
    graph = fuse_products(fuse_epilogues(g.graph()))
    assert [op.label for op in graph.operations] == ["embed", "quantize", "a b", "quantize", "c", "d", "reader"]
    joined = graph.operations[2]
    assert joined.parts == tuple(Part("store", out, {"weight": Tensor(which)}) for which, out in (("a", a), ("b", b)))


def test_a_product_that_adds_to_what_its_neighbour_writes_stays_behind_it() -> None:
    """Parts of one product are computed in any order, by several threads."""
    g = Builder()
    total = g.add(g.x, g.product(h := g.norm(g.x, "norm", 1e-5), "a", 64))
    g.reader(g.add(total, g.product(h, "b", 64)))
    assert epilogues(fuse(g.graph())) == ["add", "add"]


def test_attention_is_combined_behind_a_barrier() -> None:
    g = Builder()
    g.reader(g.product(g.attended(g.x), "output", 64))
    graph = split_attention(g.graph())
    assert kinds(graph).endswith("keep keep attend combine product reader")
    attend, combine, product = graph.operations[-4:-1]
    assert attend.output is not None and attend.output.is_quantized
    assert combine.operands == {**attend.operands, "out": attend.output} and combine.output is None
    assert product.operands["x"] == attend.output
    assert attend.marks == (Mark("attention", 0),) and not combine.marks


def test_attention_that_others_read_too_stays() -> None:
    g = Builder()
    attended = g.attended(g.x)
    g.reader(attended, g.product(attended, "output", 64))
    graph = g.graph()
    assert split_attention(graph) == graph


@pytest.mark.parametrize("run", [*PASSES, fuse], ids=lambda run: run.__name__)
def test_a_pass_changes_nothing_of_what_a_llama_means(run: Pass) -> None:
    """Nor where: at a mark goes in what went in before, and as much has happened."""
    names = Names()
    graph = LLAMA
    for earlier in PASSES[: PASSES.index(run)] if run in PASSES else ():
        graph = earlier(graph)
    before, after = meaning(graph, names), meaning(run(graph), names)
    assert after == before
    assert len(before.marks) == 30 + 1 + 30 + 1  # layers and what follows, attention, sample
    assert len(before.effects) == 30 * 2 + 1


@pytest.mark.parametrize("seed", range(200))
def test_a_pass_changes_nothing_of_what_any_graph_means(seed: int) -> None:
    names = Names()
    graph = random_graph(seed)
    before = meaning(graph, names)
    for run in PASSES:
        graph = run(graph)
        after = meaning(graph, names)
        assert after.effects == before.effects, run
        assert after.marks.keys() == before.marks.keys(), run
        assert all(before.values[value] == after.values[value] for value in after.values), run


@pytest.mark.parametrize("place", ["quantize", "up", "swiglu", "add"])
def test_a_mark_goes_where_its_operation_goes(place: str) -> None:
    """A layer may begin anywhere, even with what is joined to the operation before."""
    g = Builder()
    h = g.norm(g.x, "norm", 1e-5)
    if place == "quantize":
        with g.layer(0):
            gate = g.product(h, "gate", 96)
    else:
        gate = g.product(h, "gate", 96)
    with g.layer(1) if place == "up" else g.layer(-1):
        up = g.product(h, "up", 96)
    with g.layer(1) if place == "swiglu" else g.layer(-1):
        activated = g.swiglu(gate, up)
    y = g.product(activated, "down", 64)
    with g.layer(1) if place == "add" else g.layer(-1):
        x = g.add(g.x, y)
    g.reader(x)
    graph = g.graph()
    assert fuse(graph).marks().keys() == graph.marks().keys()


def test_profiles_show_the_matrices_by_their_names() -> None:
    layer = ["norm", "q k v", "attend", "combine", "output", "norm", "gate up", "down"]
    assert [op.label for op in fuse(LLAMA).operations] == ["embed", *layer * 30, "norm", "head", "sample"]
