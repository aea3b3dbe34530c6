"""A fused and planned graph as records for our kernels: kernels/ops.py says what each word is.

Arenas that the records point to: weights (the packed file's data), work and tables (runtime/plan.py), step (step.py),
blocks.<group> and slots (memory/layout.py).
"""

from collections.abc import Mapping
from itertools import pairwise

import numpy as np

from edgellm.backends.cpu.step import StepLayout
from edgellm.kernels import ops
from edgellm.kernels.panels import PANEL, padded_rows
from edgellm.memory.layout import StateLayout
from edgellm.packed.header import PackedHeader
from edgellm.runtime.graph import Graph, LayerState, Operand, Operation, Part, RopeTable, Tensor, Value
from edgellm.runtime.plan import Place, Plan
from edgellm.runtime.program import Kernel, Program, ProgramWriter, Ref, Word, in_order

KERNELS = {"attend": ops.ATTEND, "combine": ops.ATTEND, "embed": ops.EMBED, "norm": ops.NORM,
           "quantize": ops.QUANTIZE, "sample": ops.SAMPLE}  # fmt: skip


def lower(graph: Graph, plan: Plan, header: PackedHeader, states: StateLayout, step: StepLayout) -> Program:
    """The program of a graph."""
    lowering = _Lowering(graph, plan, header, states, step)
    return lowering.program()


class _Lowering:
    def __init__(self, graph: Graph, plan: Plan, header: PackedHeader, states: StateLayout, step: StepLayout) -> None:
        self._graph = graph
        self._plan = plan
        self._header = header
        self._states = states
        self._step = step
        self._writer = ProgramWriter(len(graph.operations))
        self._states_of: dict[int, Ref] = {}  # by layer: four words of a program name each

    def program(self) -> Program:
        for before, op in pairwise((None, *self._graph.operations)):
            assert op is not None
            if op.kind == "product":
                self._product(op, before)
            else:
                self._operation(op)
        return self._writer.program(tuple(op.label for op in self._graph.operations), self._graph.marks())

    def _operation(self, op: Operation) -> None:
        assert op.call is not None or op.kind in KERNELS, f"no kernel for {op}"
        assert op.kind != "quantize" or not op.reads[0].is_selected, (
            f"no kernel for rows that are selected already: {op}"
        )
        record = op.call.record if op.call else KERNELS[op.kind]
        barrier = ops.BARRIER if op.kind != "embed" else ops.NO_BARRIER
        words = self._words(record, {**op.operands, "out": op.operands.get("out", op.output)})
        self._writer.operation(record, kernel=Kernel(op.kind), barrier=barrier, **words)

    def _product(self, op: Operation, before: Operation | None) -> None:
        """Where every thread has just normalized few rows for itself, none waits for the others, unless it would write
        over what they read.
        """
        x = op.operands["x"]
        assert isinstance(x, Value)
        place = self._plan.places[x]
        plan = self._plan
        has_own = place.own is not None
        follows_norm = has_own and before is not None and before.output == x
        read = {plan.places[value] for value in before.reads} if before else set()
        may_go_on = follows_norm and read.isdisjoint(plan.places[value] for value in op.writes)
        self._writer.operation(
            ops.PRODUCT,
            kernel=Kernel("product"),
            barrier=ops.BARRIER_OF_MANY if may_go_on else ops.BARRIER,
            parts=self._writer.table([self._part(part) for part in op.parts]),
            part_count=len(op.parts),
            x_codes=Ref("work", place.offset),
            x_meta=Ref("work", place.meta),
            own_codes=_optional(place.own),
            own_meta=_optional(place.own_meta if has_own else None),
            columns=x.width,
            selected=int(x.is_selected),
            scratch=Ref("work", plan.scratch),
            scratch_stride=plan.scratch_stride,
            outliers=Ref("work", plan.outliers),
            outliers_stride=plan.outliers_stride,
        )

    def _part(self, part: Part) -> tuple[Word, ...]:
        weight = part.operands["weight"]
        second = part.operands.get("up")
        assert isinstance(weight, Tensor)
        record = ops.EPILOGUES[part.epilogue]
        name = part.epilogue
        if name in ("query", "key", "value"):
            name += f"_{self._states.kv_format.name}"
        rows, _ = self._header.network.matrices()[weight.name]
        words = {
            "weight": self._operand(weight),
            "second": 0 if second is None else self._operand(second),
            "panels": padded_rows(rows) // PANEL,
            "epilogue": Kernel(name),
            "operands": self._writer.record(record, **self._words(record, {**part.operands, "out": part.output})),
        }
        return in_order(ops.PART, words)

    def _words(self, record: ops.Record, operands: Mapping[str, Operand]) -> dict[str, Word]:
        """The words of a record that name operands; quantized rows are two words, or four with the threads' copies."""
        named: dict[str, Word] = {
            "scratch": Ref("work", self._plan.scratch),
            "scratch_stride": self._plan.scratch_stride,
            "partials": Ref("work", self._plan.partials),
            "chunks": self._plan.chunks,
        }
        for name, operand in operands.items():
            if isinstance(operand, Value):
                named |= _value_words(name, operand, self._plan.places[operand])
            elif name in record.names:
                named[name] = self._operand(operand)
        return {name: named[name] for name in record.names if name not in ops.HEAD}

    def _operand(self, operand: Operand) -> Word:
        match operand:
            case Tensor():
                return self._tensor(operand.name)
            case LayerState():
                if operand.layer not in self._states_of:
                    self._states_of[operand.layer] = self._state(operand.layer)
                return self._states_of[operand.layer]
            case RopeTable():
                return Ref("tables", self._plan.rope[operand])
            case float():
                return float_bits(operand)
            case int():
                return operand
            case None:
                return 0
        raise AssertionError(operand)

    def _tensor(self, name: str) -> Ref:
        """Of a matrix the record that its kernels take, of a vector its floats."""
        table = self._header.table
        if name in table:
            return Ref("weights", table[name].begin)
        quant = self._header.quants[name]
        parts = {part: Ref("weights", table[f"{name}.{part}"].begin) for part in quant.parts(PANEL, quant.group)}
        kernels = {which: Kernel(f"{which}_{quant.kernel}") for which in ops.WEIGHT_HEAD}
        return self._writer.record(quant.record, **kernels, **parts, **quant.numbers())

    def _state(self, layer: int) -> Ref:
        """What a layer remembers: keys and values, or a state of a fixed size."""
        slots = self._states.slots
        name = self._states.kv_format.name
        if slots is not None and layer in slots.layers:
            return self._writer.record(
                ops.RECURRENT,
                slots=Ref("slots", slots.layers[layer].offset),
                table=Ref("step", self._step.slots),
                slot_stride=slots.nbytes,
            )
        number = self._states.group_of[layer]
        group = self._states.groups[number]
        return self._writer.record(
            ops.CACHE,
            blocks=Ref(f"blocks.{number}", 0),
            tables=Ref("step", self._step.tables[number]),
            table_stride=self._step.table_stride,
            block_stride=group.nbytes,
            offset=group.layers[layer].offset,
            head_stride=group.layers[layer].head_stride,
            head_size=group.layers[layer].state.head_size,
            score=Kernel(f"score_{name}"),
            values=Kernel(f"values_{name}"),
        )


def _value_words(name: str, value: Value, place: Place) -> dict[str, Word]:
    size: dict[str, Word] = {"width": value.width, "stride": place.stride, f"{name}_stride": place.stride}
    if not value.is_quantized:
        return size | {name: Ref("work", place.offset)}
    has_own = place.own is not None
    return size | {
        f"{name}_codes": Ref("work", place.offset),
        f"{name}_meta": Ref("work", place.meta),
        "own_codes": _optional(place.own),
        "own_meta": _optional(place.own_meta if has_own else None),
    }


def _optional(offset: int | None) -> Word:
    return 0 if offset is None else Ref("work", offset)


def float_bits(value: float) -> int:
    """The bits of a float32, as a word of a record carries them."""
    return int(np.float32(value).view(np.int32))
