"""Passes that join operations of a graph into what our kernels do at once. Each takes a graph and gives an equal one.

fuse_norms        select, norm, quantize                      -> norm, which writes quantized rows
fuse_swiglu       product, product, swiglu, quantize          -> product, whose epilogue activates and quantizes
fuse_epilogues    product, and what becomes of its outputs    -> product with a part
fuse_products     products of the same rows                   -> one product with all their parts
split_attention   attend, quantize                            -> attend, combine, which write quantized rows
"""

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import replace

from edgellm.runtime.graph import Graph, Operand, Operation, Part, Value

Pass = Callable[[Graph], Graph]


def fuse(graph: Graph) -> Graph:
    """All passes, in their order."""
    for run in (fuse_norms, fuse_swiglu, fuse_epilogues, fuse_products, split_attention):
        graph = run(graph)
    return graph


class _Rewrite:
    """A graph in the making: operations are joined while their readers are looked up."""

    def __init__(self, graph: Graph) -> None:
        self._operations = graph.operations
        self._writers = {value: op for op in graph.operations for value in op.writes}
        self._readers: dict[Value, list[Operation]] = {}
        for op in graph.operations:
            for value in op.reads:
                self._readers.setdefault(value, []).append(op)
        self._new: dict[int, list[Operation]] = {}

    def writer(self, value: Operand, kind: str) -> Operation | None:
        """Who writes a value that one operation reads, if it is of this kind."""
        assert isinstance(value, Value)
        op = self._writers[value]
        return op if op.kind == kind and len(self._readers[value]) == 1 else None

    def reader(self, op: Operation, kind: str) -> Operation | None:
        """Who alone reads the output of an operation, if it is of this kind."""
        readers = self._readers.get(op.output, []) if op.output else []
        return readers[0] if len(readers) == 1 and readers[0].kind == kind else None

    def join(self, old: Seq[Operation], at: Operation, *new: Operation) -> None:
        """Operations become new ones in the place of one of them; the first takes over all marks."""
        marks = tuple(mark for op in old for mark in op.marks)
        self._new |= {id(op): [] for op in old}
        self._new[id(at)] = [replace(new[0], marks=marks), *new[1:]]

    def graph(self) -> Graph:
        return Graph(tuple(made for op in self._operations for made in self._new.get(id(op), [op])))


def fuse_norms(graph: Graph) -> Graph:
    rewrite = _Rewrite(graph)
    for op in graph.operations:
        quantize = rewrite.reader(op, "quantize") if op.kind == "norm" else None
        if quantize is None:
            continue
        select = rewrite.writer(op.operands["x"], "select")
        old = [select, op, quantize] if select else [op, quantize]
        assert quantize.output is not None
        read = {"x": old[0].operands["x"], "width": quantize.output.width, "selected": int(select is not None)}
        rewrite.join(old, old[0], replace(op, output=quantize.output, operands={**op.operands, **read}))
    return rewrite.graph()


def fuse_swiglu(graph: Graph) -> Graph:
    rewrite = _Rewrite(graph)
    for op in graph.operations:
        quantize = rewrite.reader(op, "quantize") if op.kind == "swiglu" else None
        if quantize is None:
            continue
        gate, up = (rewrite.writer(op.operands[name], "product") for name in ("gate", "up"))
        if gate is None or up is None or gate.operands["x"] != up.operands["x"]:
            continue
        part = Part("swiglu", quantize.output, {"weight": gate.operands["weight"], "up": up.operands["weight"]})
        label = f"{gate.label} {up.label}"
        fused = Operation("product", None, {"x": gate.operands["x"]}, (part,), label=label)
        rewrite.join((gate, up, op, quantize), op, fused)
    return rewrite.graph()


def fuse_epilogues(graph: Graph) -> Graph:
    """A product goes down to what becomes of it: what it is added to may be written, or read, before that only."""
    rewrite = _Rewrite(graph)
    for op in graph.operations:
        if op.kind == "product" and not op.parts:
            part, joined = _epilogue(rewrite, op)
            old = [op, *joined]
            rewrite.join(old, old[-1], replace(op, output=None, operands={"x": op.operands["x"]}, parts=(part,)))
    return rewrite.graph()


def _epilogue(rewrite: _Rewrite, op: Operation) -> tuple[Part, list[Operation]]:
    """What becomes of a product's outputs, and the operations that say so."""
    weight = {"weight": op.operands["weight"]}
    if (add := rewrite.reader(op, "add")) and add.operands["y"] == op.output:
        return Part("add", add.output, {**weight, "x": add.operands["x"]}), [add]
    if keep := rewrite.reader(op, "keep"):
        return Part(str(keep.operands["what"]), None, {**weight, **_but(keep, "x", "what")}), [keep]
    if rotate := rewrite.reader(op, "rotate"):
        if keep := rewrite.reader(rotate, "keep"):
            operands = {**weight, **_but(rotate, "x", "scale"), **_but(keep, "x", "what")}
            assert keep.operands["what"] == "key" and rotate.operands["scale"] == 1.0, (keep, rotate)
            return Part("key", None, operands), [rotate, keep]
        if attend := rewrite.reader(rotate, "attend"):
            operands = {**weight, **_but(rotate, "x"), "state": attend.operands["state"]}
            return Part("query", rotate.output, operands), [rotate]
    return Part("store", op.output, weight), []


def _but(op: Operation, *names: str) -> dict[str, Operand]:
    return {name: operand for name, operand in op.operands.items() if name not in names}


def fuse_products(graph: Graph) -> Graph:
    """Neighbours only: nothing between them may read what they write. Nor may they: parts are computed in any order."""
    kept: list[Operation] = []
    for op in graph.operations:
        last = kept[-1] if kept else None
        is_alike = last and op.kind == last.kind == "product" and op.operands == last.operands
        if last and is_alike and not set(op.reads) & set(last.writes):
            parts = last.parts + op.parts
            label = f"{last.label} {op.label}"
            kept[-1] = replace(last, parts=parts, marks=last.marks + op.marks, label=label)
        else:
            kept.append(op)
    return Graph(tuple(kept))


def split_attention(graph: Graph) -> Graph:
    """Attention of few rows is split over the threads, and combined after a barrier."""
    rewrite = _Rewrite(graph)
    for op in graph.operations:
        quantize = rewrite.reader(op, "quantize") if op.kind == "attend" else None
        if quantize is not None:
            attend = replace(op, output=quantize.output)
            combine = Operation("combine", None, {**op.operands, "out": quantize.output}, label="combine")
            rewrite.join((op, quantize), op, attend, combine)
    return rewrite.graph()
