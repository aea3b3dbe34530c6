"""One step of a model: rows in, keys and values into the cache, logits and chosen tokens out."""

import time
from array import array
from collections.abc import Sequence as Seq

import numpy as np
from numpy.typing import NDArray

from edgellm.backends.base import Rows, Watch
from edgellm.backends.cpu.lower import lower
from edgellm.backends.cpu.rope import RopeTables
from edgellm.backends.cpu.sampler import Sampler
from edgellm.backends.cpu.step import StepLayout
from edgellm.backends.cpu.team import Team
from edgellm.engine.params import SamplingParams
from edgellm.kernels import ops
from edgellm.kernels.jit import Library
from edgellm.memory.buffers import address, aligned_zeros, elements
from edgellm.memory.kv import KVCache
from edgellm.memory.store import HostStore
from edgellm.packed.read import PackedModel
from edgellm.runtime.build import network_graph
from edgellm.runtime.fuse import fuse
from edgellm.runtime.graph import Mark, Value
from edgellm.runtime.plan import StepShape, plan

ROWS, SEQUENCE_COUNT, LOGIT_COUNT, SPAN_COUNT, SPLIT, FEW = (
    ops.STEP.names.index(name) for name in ("rows", "sequence_count", "logit_count", "span_count", "split", "few")
)


class CPURunner:
    """Runs steps of one model. Not reentrant: one step at a time."""

    def __init__(
        self, library: Library, team: Team, packed: PackedModel, cache: KVCache, *,
        context: int, max_rows: int, max_logit_rows: int,
    ) -> None:  # fmt: skip
        """`max_rows` rows a step at most, `max_logit_rows` of them with logits; positions below `context`."""
        self.network = packed.network
        self.cache = cache
        self.last_seconds = 0.0
        self.max_rows = max_rows
        self.max_logit_rows = max_logit_rows
        self._team = team
        shape = StepShape(max_rows, max_logit_rows, team.threads, context)
        self.graph = fuse(network_graph(packed.network))
        self._plan = plan(self.graph, shape)
        layout = StepLayout(shape, len(cache.layout.groups))
        self._program = lower(self.graph, self._plan, packed.header, cache.layout, layout)
        self.operations = self._program.labels
        self._marks = self._program.marks
        self._work = aligned_zeros(self._plan.work_bytes, np.uint8)
        self._rope = RopeTables(self._plan, packed)
        self._arena = aligned_zeros(layout.nbytes, np.uint8)
        assert isinstance(cache.store, HostStore)
        bases = {
            "weights": packed.address,
            "work": address(self._work),
            "tables": address(self._rope.memory),
            "step": address(self._arena),
            **cache.store.bases(),
        }
        self._table = self._program.bind(bases, library.addresses)
        self._kept = [packed, cache, library]  # what the table points to
        self._table_address = address(self._table)
        self._step_address = address(self._arena)
        groups = [op.number("heads") // op.number("kv_heads") for op in self.graph.operations if op.kind == "attend"]
        self._span = max(1, ops.SPAN_QUERIES // max(groups, default=1))
        self._times = np.zeros(len(self.operations) + 1, np.int64)
        self._bind_step(layout)
        (sample,) = [op for op in self.graph.operations if op.kind == "sample"]
        self._all_logits = self._floats(sample.operands["logits"])[:, : packed.network.vocabulary]

    def _bind_step(self, layout: StepLayout) -> None:
        """The step's record, and its arrays as Python writes them."""
        words = dict.fromkeys(ops.STEP.names, 0)
        for name in ("tokens", "positions", "sequences", "sequence_rows", "spans", "logit_rows", "samplers"):
            words[name] = self._step_address + getattr(layout, name)
        record = ops.STEP.pack(**words)
        self._arena[: record.nbytes] = record.view(np.uint8)
        rows = self.max_rows
        logit_rows = self.max_logit_rows

        def part(offset: int, count: int, *, is_long: bool = False) -> memoryview:
            data = self._arena[offset : offset + count * (8 if is_long else 4)]
            return elements(data.view(np.int64) if is_long else data.view(np.int32))

        self._step = part(0, len(ops.STEP.names), is_long=True)
        self._tokens = part(layout.tokens, rows)
        self._positions = part(layout.positions, rows)
        self._sequences = part(layout.sequences, rows)
        self._sequence_rows = part(layout.sequence_rows, 2 * rows)
        self._spans = part(layout.spans, 2 * rows)
        self._logit_rows = part(layout.logit_rows, logit_rows)
        self._samplers = part(layout.samplers, logit_rows, is_long=True)
        self._table_stride = layout.table_stride
        self._slots = part(layout.slots, 2 * rows)
        # Of each group that has layers: its number, its tables, and what was written to them, sequence by sequence
        used = [number for number, group in enumerate(self.cache.layout.groups) if group.layers]
        self._tables: list[tuple[int, memoryview, list[list[int]]]] = [
            (number, part(layout.tables[number], rows * layout.table_stride), [[] for _ in range(rows)])
            for number in used
        ]

    @property
    def logits(self) -> NDArray[np.float32]:
        """Those of the last step, [logit rows][V], valid until the next."""
        return self._all_logits[: self._step[LOGIT_COUNT]]

    def read(self, mark: Mark) -> NDArray[np.float32]:
        """What goes into the operation at a mark: Runner.read."""
        op = self.graph.operations[self._marks[mark]]
        if op.kind == "sample":
            return self.logits
        x = op.operands.get("q", op.operands.get("x"))
        assert isinstance(x, Value), op
        return self._floats(x)

    @property
    def seconds(self) -> NDArray[np.float64]:
        """Of each operation of the last step that was timed, [operations]."""
        ticks = np.diff(self._times)
        # The clock's rate is not known everywhere; a step is all but some microseconds of the call
        seconds: NDArray[np.float64] = ticks * (self.last_seconds / max(ticks.sum(), 1))
        return seconds

    def sampler(self, params: SamplingParams, prompt: Seq[int], breakers: Seq[int] = ()) -> Sampler:
        """A slot for a request: Runner.sampler."""
        return Sampler(params, self.network.vocabulary, prompt, breakers)

    def start(self, batch: Seq[Rows], *, watch: Watch | None = None, timed: bool = False) -> None:
        """Compute all rows: Runner.start. The caller's thread is one of the team, so all is over when this returns."""
        row = num_logits = num_spans = 0
        for number, rows in enumerate(batch):
            start = rows.sequence.length
            count = len(rows.tokens)
            assert rows.sequence.has_room(count), "room was not reserved"
            if count == 1:  # a third of the time that slices take
                self._tokens[row], self._positions[row], self._sequences[row] = rows.tokens[0], start, number
            else:
                self._tokens[row : row + count] = array("i", rows.tokens)
                self._positions[row : row + count] = array("i", range(start, start + count))
                self._sequences[row : row + count] = array("i", [number]) * count
            self._sequence_rows[2 * number], self._sequence_rows[2 * number + 1] = row, count
            self._slots[2 * number], self._slots[2 * number + 1] = rows.sequence.slot, rows.sequence.next_slot
            for group, tables, written in self._tables:
                blocks = rows.sequence.tables(group)
                if written[number] != blocks:  # a long list costs more to write than to compare
                    table = number * self._table_stride
                    tables[table : table + len(blocks)] = array("i", blocks)
                    written[number] = list(blocks)
            for first in range(0, count, self._span):
                self._spans[2 * num_spans], self._spans[2 * num_spans + 1] = row + first, min(self._span, count - first)
                num_spans += 1
            for index in rows.logits:
                self._logit_rows[num_logits], self._samplers[num_logits] = row + index, 0
                num_logits += 1
            if rows.sampler is not None:
                assert isinstance(rows.sampler, Sampler)
                records = rows.sampler.records
                self._samplers[num_logits - len(records) : num_logits] = array("q", records)
            row += count
            self._rope.ensure(start + count)
        self._step[SEQUENCE_COUNT] = len(batch)
        self._walk(row, num_logits, num_spans, self._times if timed else None, watch)
        for rows in batch:
            rows.sequence.advance(len(rows.tokens))

    def wait(self) -> None:
        """Nothing is left to do after `start`."""

    def close(self) -> None:
        """Forget the model's memory, so that its file can be unmapped."""
        del self._table, self._kept

    def unembed(self, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits [R][V] of hidden states [R][D], at most as many as rows with logits: the last norm and the head."""
        count = len(hidden)
        last = Mark("layer", len(self.network.layers))
        self.read(last)[:count] = hidden
        self._logit_rows[:count] = array("i", range(count))
        self._samplers[:count] = array("q", [0]) * count
        self._set_counts(count, count, 0)
        self._run_operations(self._marks[last], len(self.operations))
        return self.logits.copy()

    def _walk(
        self, num_rows: int, num_logits: int, num_spans: int, times: NDArray[np.int64] | None,
        watch: Watch | None,
    ) -> None:  # fmt: skip
        assert 0 < num_rows <= self.max_rows, num_rows
        assert num_logits <= self.max_logit_rows, num_logits
        self._set_counts(num_rows, num_logits, num_spans)
        begin = 0
        started = time.perf_counter()
        if watch:
            for mark in sorted(watch, key=self._marks.__getitem__):
                end = self._marks[mark]
                self._run_operations(begin, end, times)
                watch[mark]()
                begin = end
        self._run_operations(begin, len(self.operations), times)
        self.last_seconds = time.perf_counter() - started

    def _run_operations(self, begin: int, end: int, times: NDArray[np.int64] | None = None) -> None:
        self._team.run(
            self._table_address + begin * 8 * ops.OPERATION_WORDS, end - begin, self._step_address,
            0 if times is None else address(times[begin:]),
        )  # fmt: skip

    def _set_counts(self, num_rows: int, num_logits: int, num_spans: int) -> None:
        """All of the step's record that changes from step to step."""
        words = self._step
        words[ROWS], words[LOGIT_COUNT], words[SPAN_COUNT] = num_rows, num_logits, num_spans
        words[SPLIT], words[FEW] = num_rows <= ops.SPLIT_ROWS, num_rows <= ops.OWN_ROWS

    def _floats(self, value: object) -> NDArray[np.float32]:
        """A value's memory, [rows][width]."""
        assert isinstance(value, Value)
        place = self._plan.places[value]
        rows = self.max_logit_rows if value.is_selected else self.max_rows
        floats = self._work[place.offset :][: rows * place.stride * 4].view(np.float32)
        return floats.reshape(rows, place.stride)[:, : value.width]
