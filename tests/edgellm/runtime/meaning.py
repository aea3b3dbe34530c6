"""What a graph computes, spelled out: every value as the expression that it stands for, whoever computes it.

An operation that does several things at once means the same as those one after the other.
"""

from dataclasses import dataclass, field
from typing import Any

from edgellm.runtime.graph import Graph, Mark, Operand, Operation, Part, Value


class Names(dict[Any, int]):
    """Expression -> its number, by which expressions that share much are compared."""


@dataclass
class Meaning:
    """Equal for graphs that compute the same, if they share `names`."""

    names: Names = field(repr=False)
    values: dict[Value, int] = field(default_factory=dict, repr=False, compare=False)
    effects: list[int] = field(default_factory=list)  # what is kept and sampled, in order
    marks: dict[Mark, tuple[int | None, int]] = field(default_factory=dict)  # what goes in, behind how many effects

    def name(self, *expression: object) -> int:
        return self.names.setdefault(expression, len(self.names))

    def of(self, operand: Operand) -> object:
        return self.values[operand] if isinstance(operand, Value) else operand


def meaning(graph: Graph, names: Names) -> Meaning:
    """Reading a value that is not written yet is a KeyError."""
    m = Meaning(names)
    for op in graph.operations:
        for mark in op.marks:
            read = op.operands.get("q", op.operands.get("x"))
            m.marks[mark] = None if read is None else m.values[read], len(m.effects)  # type: ignore[index]
        if op.kind == "product" and op.parts:
            for part in op.parts:
                _part(m, part, m.of(op.operands["x"]))
        elif op.kind != "combine":  # the rest of an attend
            _operation(m, op)
    return m


def _operation(m: Meaning, op: Operation) -> None:
    operands = {name: m.of(operand) for name, operand in op.operands.items()}
    if operands.pop("selected", 0):
        operands["x"] = m.name("select", ("x", operands["x"]))
    operands.pop("width", None)  # the output says it
    if op.kind == "attend":
        operands["remembered"] = len(m.effects)
    found = m.name(op.kind, *sorted(operands.items()))
    if op.output is None:
        m.effects.append(found)
        return
    if op.output.is_quantized and op.kind != "quantize":
        found = m.name("quantize", ("x", found))
    m.values[op.output] = found


def _part(m: Meaning, part: Part, x: object) -> None:
    """A product, and what becomes of it."""
    operands = {name: m.of(operand) for name, operand in part.operands.items()}
    y = m.name("product", ("weight", operands.pop("weight")), ("x", x))
    match part.epilogue:
        case "store":
            found = y
        case "add":
            found = m.name("add", ("x", operands["x"]), ("y", y))
        case "swiglu":
            up = m.name("product", ("weight", operands["up"]), ("x", x))
            found = m.name("quantize", ("x", m.name("swiglu", ("gate", y), ("up", up))))
        case "query":
            del operands["state"]
            found = m.name("rotate", *sorted({**operands, "x": y}.items()))
        case "key":
            turned = {"x": y, "rope": operands["rope"], "head_size": operands["head_size"], "scale": 1.0}
            found = m.name("rotate", *sorted(turned.items()))
        case "value":
            found = y
    if part.epilogue in ("key", "value"):
        kept = {"x": found, "what": part.epilogue, "state": operands["state"], "head_size": operands["head_size"]}
        m.effects.append(m.name("keep", *sorted(kept.items())))
    else:
        assert part.output is not None
        m.values[part.output] = found
