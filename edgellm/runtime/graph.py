"""The program of a step as a value: operations in order, on values that have no address.

A family says what a step computes with a `GraphBuilder`. It emits these kinds of operations, where x and y are floats,
a is quantized rows, W a matrix and w a vector:

    embed       the rows of W at the step's tokens
    select      the rows of x whose logits are wanted
    norm        x / rms(x) * w
    quantize    x as a matrix product takes it
    product     a @ W.T
    rotate      heads of x, rotated by their positions, times a scale
    keep        x into what a layer remembers, as keys or as values
    attend      softmax(x keys) values, over what a layer remembers
    swiglu      silu(x) * y
    add         x + y
    sample      a token for each row of x that has a sampler

and kernels of the family's own. The passes of fuse.py join them into what our kernels do at once.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

from edgellm.families.network import Rope
from edgellm.kernels.ops import Record


class Mark(NamedTuple):
    """A place in a program, before the operation that carries it."""

    part: Literal["layer", "attention", "sample"]
    layer: int = -1  # the number of layers stands for what follows the last


@dataclass(frozen=True)
class Value:
    """What an operation computes for every row of a step: float32 [R][width], or rows quantized by blocks of 32."""

    number: int  # unique in its graph
    name: str  # what it is, for people; values of one name share memory where they can
    width: int
    is_quantized: bool = False
    is_selected: bool = False  # of the rows whose logits are wanted only

    def __hash__(self) -> int:
        return self.number  # passes look values up by the thousand


class Tensor(NamedTuple):
    """An operand: a tensor of the model."""

    name: str


class LayerState(NamedTuple):
    """An operand: what a layer remembers of the sequences."""

    layer: int


class RopeTable(NamedTuple):
    """An operand: cosines and sines for every position."""

    rope: Rope
    head_size: int


Operand = Value | Tensor | LayerState | RopeTable | int | float | str | None


@dataclass(frozen=True)
class KernelCall:
    """A kernel that a family brings along: its record's words are the operands' names.

    `twin` computes one row in NumPy: float64 vectors in the order of the inputs, the layer's state as a float32 array
    that it changes, and the tensors and numbers among the operands by name -> the row of the output.
    """

    unit: str  # the name of what `source` compiles to (kernels/units.py)
    source: Path  # whose `entry_points` have the kernel, by the operation's kind
    record: Record
    twin: Callable[..., Any]


@dataclass(frozen=True)
class Part:
    """A matrix of a product, and what becomes of its outputs (`epilogue`, see kernels/ops.py)."""

    epilogue: str
    output: Value | None = None
    operands: Mapping[str, Operand] = field(default_factory=dict)


@dataclass(frozen=True)
class Operation:
    """One thing that a step does. Operands that are values are its inputs."""

    kind: str
    output: Value | None = None
    operands: Mapping[str, Operand] = field(default_factory=dict)
    parts: tuple[Part, ...] = ()  # of a product
    marks: tuple[Mark, ...] = ()
    label: str = ""  # for people: profiles and timings sum by it
    call: KernelCall | None = None

    def number(self, name: str) -> int:
        """An operand that is a count."""
        value = self.operands[name]
        assert isinstance(value, int), (name, value)
        return value

    @cached_property
    def reads(self) -> tuple[Value, ...]:
        operands = (self.operands, *(part.operands for part in self.parts))
        return tuple(value for named in operands for value in named.values() if isinstance(value, Value))

    @cached_property
    def writes(self) -> tuple[Value, ...]:
        outputs = (self.output, *(part.output for part in self.parts))
        return tuple(value for value in outputs if value is not None)


@dataclass(frozen=True)
class Graph:
    operations: tuple[Operation, ...]

    def marks(self) -> dict[Mark, int]:
        """The number of the operation before which each mark stands."""
        return {mark: at for at, op in enumerate(self.operations) for mark in op.marks}


class GraphBuilder:
    """Writes calls down as operations. Names of tensors are completed by the layer that is open."""

    def __init__(self, num_layers: int) -> None:
        self._num_layers = num_layers
        self._layer = -1
        self._operations: list[Operation] = []
        self._marks: list[Mark] = []  # for the next operation
        self._num_values = 0
        self._quantized: dict[Value, Value] = {}

    @contextmanager
    def layer(self, number: int) -> Iterator[None]:
        """The operations of a layer."""
        self._layer = number
        self._marks.append(Mark("layer", number))
        yield
        self._layer = -1

    def tensor(self, name: str) -> Tensor:
        return Tensor(name if self._layer < 0 else f"layers.{self._layer}.{name}")

    def embed(self, weight: str, width: int) -> Value:
        return self._emit("embed", "residual", width, weight=self.tensor(weight))

    def select(self, x: Value) -> Value:
        """Of the residual stream after the last layer, the rows whose logits are wanted."""
        self._marks.append(Mark("layer", self._num_layers))
        output = self._value("selected", x.width, is_selected=True)
        self._append("select", output, x=x)
        return output

    def norm(self, x: Value, weight: str, epsilon: float) -> Value:
        return self._emit("norm", "normed", x.width, x=x, weight=self.tensor(weight), epsilon=epsilon)

    def product(self, x: Value, weight: str, rows: int, *, label: str = "") -> Value:
        """x @ W.T for a matrix of `rows` rows; x is quantized first, once for all its products."""
        label = label or weight.rpartition(".")[2]
        return self._emit("product", label, rows, label, x=self._quantize(x), weight=self.tensor(weight))

    def rotate(self, x: Value, rope: Rope | None, head_size: int, *, scale: float = 1.0) -> Value:
        table = RopeTable(rope, head_size) if rope else None
        return self._emit("rotate", x.name, x.width, x=x, rope=table, head_size=head_size, scale=scale)

    def attend(
        self, q: Value, k: Value, v: Value, *, heads: int, kv_heads: int, head_size: int, window: int | None
    ) -> Value:
        """Keep the rows' keys and values, then attend to all that is kept. q comes scaled, by log2(e) as well."""
        state = LayerState(self._layer)
        self._append("keep", None, x=k, state=state, head_size=head_size, what="key")
        self._append("keep", None, x=v, state=state, head_size=head_size, what="value")
        self._marks.append(Mark("attention", self._layer))
        return self._emit(
            "attend", "attended", q.width, q=q, state=state, heads=heads, kv_heads=kv_heads, head_size=head_size,
            window=window or 0,
        )  # fmt: skip

    def swiglu(self, gate: Value, up: Value) -> Value:
        return self._emit("swiglu", "activated", gate.width, gate=gate, up=up)

    def add(self, x: Value, y: Value) -> Value:
        """x + y, in the place of x, which is read no more."""
        return self._emit("add", x.name, x.width, x=x, y=y)

    def sample(self, logits: Value) -> None:
        self._marks.append(Mark("sample"))
        self._append("sample", None, logits=logits, vocabulary=logits.width)

    def kernel(self, name: str, call: KernelCall, width: int, **operands: Operand) -> Value:
        """A kernel of the family's own: one row of floats out for every row of the step."""
        output = self._value(name, width)
        self._operations.append(Operation(name, output, operands, (), self._take_marks(), name, call))
        return output

    @property
    def state(self) -> LayerState:
        """What the open layer remembers, as an operand of a kernel."""
        return LayerState(self._layer)

    def graph(self) -> Graph:
        assert not self._marks, f"marks of no operation: {self._marks}"
        return Graph(tuple(self._operations))

    def _quantize(self, x: Value) -> Value:
        if x not in self._quantized:
            output = self._value(x.name, x.width, is_quantized=True, is_selected=x.is_selected)
            self._append("quantize", output, x=x, selected=0)
            self._quantized[x] = output
        return self._quantized[x]

    def _value(self, name: str, width: int, *, is_quantized: bool = False, is_selected: bool = False) -> Value:
        self._num_values += 1
        return Value(self._num_values, name, width, is_quantized, is_selected)

    def _emit(self, kind: str, name: str, width: int, label: str = "", **operands: Operand) -> Value:
        is_selected = any(isinstance(value, Value) and value.is_selected for value in operands.values())
        output = self._value(name, width, is_selected=is_selected)
        self._append(kind, output, label, **operands)
        return output

    def _append(self, kind: str, output: Value | None, label: str = "", **operands: Operand) -> None:
        self._operations.append(Operation(kind, output, operands, (), self._take_marks(), label or kind))

    def _take_marks(self) -> tuple[Mark, ...]:
        marks = tuple(self._marks)
        self._marks.clear()
        return marks
