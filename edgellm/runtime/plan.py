"""Where the values of a graph lie: sizes and offsets in arenas, no addresses.

work      what a step writes: values, and the threads' own memory
tables    cosines and sines
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from edgellm.kernels import ops
from edgellm.kernels.panels import BLOCK, padded_rows
from edgellm.memory.buffers import ALIGNMENT
from edgellm.runtime.graph import Graph, Operation, RopeTable, Value


@dataclass(frozen=True)
class StepShape:
    """How large steps become."""

    rows: int
    logit_rows: int
    threads: int
    context: int  # positions are below it


@dataclass(frozen=True)
class Place:
    """Where a value lies, in bytes of the work arena."""

    offset: int  # of the floats, or of the codes
    stride: int  # floats from one row to the next
    meta: int = 0  # of quantized rows (kernels/ops.py)
    own: int | None = None  # the threads' own copies of quantized rows, codes
    own_meta: int = 0


@dataclass(frozen=True)
class Plan:
    """The arenas of a graph for steps of a shape."""

    shape: StepShape
    places: Mapping[Value, Place]
    rope: Mapping[RopeTable, int]  # offset in the tables arena: float32 [context][2][E]
    scratch: int  # uint8 [threads][scratch_stride]
    scratch_stride: int
    outliers: int  # int32 [threads][outliers_stride / 4]
    outliers_stride: int
    partials: int
    chunks: int
    work_bytes: int
    table_bytes: int


_Kind = tuple[str, int, bool, bool, bool]  # name and width; whether quantized, with own copies, of fewer rows


@dataclass
class _Arena:
    """Offsets handed out one after the other, each on a cache line of its own."""

    size: int = 0
    free: dict[_Kind, list[Place]] = field(default_factory=dict)  # places whose values are dead

    def take(self, nbytes: int) -> int:
        offset = self.size
        self.size += -(-nbytes // ALIGNMENT) * ALIGNMENT
        return offset


def plan(graph: Graph, shape: StepShape) -> Plan:
    """Values of the same name, width and kind share memory where their lives do not overlap."""
    arena = _Arena()
    places = _place_values(graph, shape, arena)
    attention = [op for op in graph.operations if op.kind == "attend"]
    heads = [(op.number("heads"), op.number("kv_heads"), op.number("head_size")) for op in attention]
    chunks = -(-shape.context // ops.CHUNK)
    results = max((h * (ops.RESULT_HEADER + e) for h, _, e in heads), default=0)
    widest = max((value.width for op in graph.operations for value in op.writes if value.is_quantized), default=0)
    scratch_stride = 4 * max(2 * ops.MAX_TILE_ROWS * BLOCK, *(_attention_floats(*sizes) for sizes in heads), 0)
    outliers_stride = shape.rows * (widest // BLOCK + 1) * 16
    rope = {}
    table_bytes = 0
    for table in dict.fromkeys(_rope_tables(graph)):
        rope[table] = table_bytes
        table_bytes += shape.context * 2 * table.head_size * 4
    return Plan(
        shape=shape,
        places=places,
        rope=rope,
        partials=arena.take(min(shape.rows, ops.SPLIT_ROWS) * chunks * results * 4),
        chunks=chunks,
        outliers=arena.take(shape.threads * outliers_stride),
        outliers_stride=outliers_stride,
        scratch=arena.take(shape.threads * scratch_stride),
        scratch_stride=scratch_stride,
        work_bytes=arena.size,
        table_bytes=table_bytes,
    )


def _place_values(graph: Graph, shape: StepShape, arena: _Arena) -> dict[Value, Place]:
    last_read = {value: at for at, op in enumerate(graph.operations) for value in op.reads}
    places: dict[Value, Place] = {}
    for at, op in enumerate(graph.operations):
        for value in op.writes:
            added_to = _added_to(op, value)
            if added_to is not None:
                assert last_read[added_to] == at, f"{added_to} is read after it was added to"
                places[value] = places[added_to]
            else:
                has_own = value.is_quantized and op.kind == "norm"
                dead = arena.free.get(_kind(value, has_own=has_own))
                places[value] = dead.pop() if dead else _new_place(value, shape, arena, has_own=has_own)
        alive = {places[value] for value in op.writes}
        for value in dict.fromkeys(op.reads):
            if last_read[value] == at and places[value] not in alive:
                kind = _kind(value, has_own=places[value].own is not None)
                arena.free.setdefault(kind, []).append(places[value])
    return places


def _kind(value: Value, *, has_own: bool) -> _Kind:
    """Values alike in this take the same room."""
    return value.name, value.width, value.is_quantized, has_own, value.is_selected and not value.is_quantized


def _added_to(op: Operation, value: Value) -> Value | None:
    """The value in whose place an addition leaves its sum."""
    operands = [op.operands] if op.kind == "add" else [part.operands for part in op.parts if part.epilogue == "add"]
    outputs = [op.output] if op.kind == "add" else [part.output for part in op.parts if part.epilogue == "add"]
    for output, named in zip(outputs, operands, strict=True):
        if output == value:
            x = named["x"]
            assert isinstance(x, Value)
            return x
    return None


def _new_place(value: Value, shape: StepShape, arena: _Arena, *, has_own: bool) -> Place:
    if not value.is_quantized:
        stride = padded_rows(value.width)
        rows = shape.logit_rows if value.is_selected else shape.rows
        return Place(arena.take(rows * stride * 4), stride)
    codes, meta = _take_activation(arena, shape.rows, value.width)
    if not has_own:
        return Place(codes, value.width, meta)
    own, own_meta = _take_activation(arena, shape.threads * ops.OWN_ROWS, value.width)
    return Place(codes, value.width, meta, own, own_meta)


def _take_activation(arena: _Arena, rows: int, columns: int) -> tuple[int, int]:
    """Codes and meta data of quantized rows."""
    rows += ops.MAX_TILE_ROWS - 1  # the last tile may have room for more
    return arena.take(rows * columns), arena.take(rows * columns // BLOCK * ops.META_BYTES)


def _attention_floats(heads: int, kv_heads: int, head_size: int) -> int:
    """What a thread needs for attention, in floats."""
    queries = max(ops.SPAN_QUERIES, heads // kv_heads)
    result = ops.RESULT_HEADER + head_size
    return queries * (2 * ops.QUERY_STRIDE + 2 * ops.CHUNK + 2 * result) + head_size * ops.KV_BLOCK


def _rope_tables(graph: Graph) -> Iterator[RopeTable]:
    for op in graph.operations:
        for operands in (op.operands, *(part.operands for part in op.parts)):
            yield from (operand for operand in operands.values() if isinstance(operand, RopeTable))
