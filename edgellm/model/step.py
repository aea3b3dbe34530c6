"""One step of a model: rows in, keys and values into the cache, logits and chosen tokens out."""

import time
from array import array
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgellm.kernels import ops
from edgellm.kernels.jit import Library
from edgellm.memory.buffers import address, aligned_zeros, elements
from edgellm.memory.kv import KVCache, Sequence
from edgellm.model.program import Buffers, ProgramWriter
from edgellm.model.rope import RopeTable
from edgellm.model.team import Team
from edgellm.packed import PackedModel

ROWS, LOGIT_COUNT, SPAN_COUNT, SPLIT, FEW = (
    ops.STEP.names.index(name) for name in ("rows", "logit_count", "span_count", "split", "few")
)


@dataclass(slots=True)  # not frozen, which takes twice the time to make
class Rows:
    """Neighbouring tokens of one sequence, which follow those already in the cache."""

    sequence: Sequence
    tokens: Seq[int]
    logits: Seq[int] = ()  # indices into tokens: whose logits are wanted
    samplers: Seq[int] = ()  # addresses of sampler records, one per logits entry; 0 for none


class Stepper:
    """Runs steps of one model. Not reentrant: one step at a time."""

    def __init__(
        self, library: Library, team: Team, packed: PackedModel, cache: KVCache, *,
        context: int, max_rows: int, max_logit_rows: int,
    ) -> None:  # fmt: skip
        """`max_rows` rows a step at most, `max_logit_rows` of them with logits; positions below `context`."""
        self.config = config = packed.config
        self.cache, self.last_seconds = cache, 0.0
        self.max_rows, self.max_logit_rows = max_rows, max_logit_rows
        self._team = team
        self._rope = RopeTable(config, context, packed.vectors.get("rope_factors"))
        self._buffers = Buffers(config, max_rows, max_logit_rows, team.threads, context)
        self._writer = ProgramWriter(library.addresses, packed, self._buffers, cache, self._rope)
        self._program = self._writer.write()
        self._program_address, self._operation_bytes = address(self._program), self._program.strides[0]
        self._span = max(1, ops.SPAN_QUERIES // (config.heads // config.kv_heads))
        self._table_stride = -(-context // ops.KV_BLOCK)
        arrays: dict[str, NDArray[np.int32] | NDArray[np.int64]] = {
            "tokens": aligned_zeros(max_rows, np.int32),
            "positions": aligned_zeros(max_rows, np.int32),
            "sequences": aligned_zeros(max_rows, np.int32),
            "tables": aligned_zeros((max_rows, self._table_stride), np.int32),
            "spans": aligned_zeros((max_rows, 2), np.int32),
            "logit_rows": aligned_zeros(max_logit_rows, np.int32),
            "samplers": aligned_zeros(max_logit_rows, np.int64),
        }
        step = self._step_record({name: address(values) for name, values in arrays.items()})
        self._step, self._step_address = elements(step), address(step)
        self._tokens, self._positions, self._sequences, self._tables, self._spans, self._logit_rows, self._samplers = (
            elements(values) for values in arrays.values()
        )
        self._written: list[list[int]] = [[] for _ in range(max_rows)]  # block tables as they are in _tables
        self._all_logits = self._buffers.logits[:, : config.vocabulary]

    @property
    def operations(self) -> list[str]:
        """Names of a step's operations, in order."""
        return self._writer.names

    @property
    def logits(self) -> NDArray[np.float32]:
        """Those of the last step, [logit rows][V], valid until the next."""
        return self._all_logits[: self._step[LOGIT_COUNT]]

    @property
    def residual(self) -> NDArray[np.float32]:
        """The stream that layers add to, [rows][D], of the step that runs."""
        return self._buffers.residual

    @property
    def query(self) -> NDArray[np.float32]:
        """The queries of the layer that runs, [rows][H*E]."""
        return self._buffers.query

    def layer_begin(self, layer: int) -> int:
        """The operation at which a layer begins; L stands for what follows the last."""
        return 1 if layer == 0 else [at for at, name in enumerate(self.operations) if name == "down"][layer - 1] + 1

    def attention_begin(self, layer: int) -> int:
        """The operation before which a layer's queries and keys are ready."""
        return [at for at, name in enumerate(self.operations) if name == "attend"][layer]

    @property
    def sampling_begin(self) -> int:
        """The operation that samples: until it begins, masks may still be written."""
        return self.operations.index("sample")

    def run(
        self,
        batch: Seq[Rows],
        times: NDArray[np.int64] | None = None,
        stops: Mapping[int, Callable[[], None]] | None = None,
    ) -> None:
        """Compute all rows; what they led to is in the samplers' records and in `logits`.

        The keys and values of the rows are appended to their sequences, which must have room reserved. `times` int64
        [operations + 1] takes when each operation began and the last ended, in ticks of the processor's clock. `stops`
        are called when all operations before the one of that number have ended.
        """
        row = num_logits = num_spans = 0
        for number, rows in enumerate(batch):
            start, count = rows.sequence.length, len(rows.tokens)
            blocks = rows.sequence.blocks
            assert (start + count) <= len(blocks) * ops.KV_BLOCK, "room was not reserved"
            if count == 1:  # a third of the time that slices take
                self._tokens[row], self._positions[row], self._sequences[row] = rows.tokens[0], start, number
            else:
                self._tokens[row : row + count] = array("i", rows.tokens)
                self._positions[row : row + count] = array("i", range(start, start + count))
                self._sequences[row : row + count] = array("i", [number]) * count
            if self._written[number] != blocks:  # a long list costs more to write than to compare
                table = number * self._table_stride
                self._tables[table : table + len(blocks)] = array("i", blocks)
                self._written[number] = list(blocks)
            for first in range(0, count, self._span):
                self._spans[2 * num_spans], self._spans[2 * num_spans + 1] = row + first, min(self._span, count - first)
                num_spans += 1
            for place, index in enumerate(rows.logits):
                self._logit_rows[num_logits] = row + index
                self._samplers[num_logits] = rows.samplers[place] if rows.samplers else 0
                num_logits += 1
            row += count
            self._rope.ensure(start + count)
        self._walk(row, num_logits, num_spans, times, stops)
        for rows in batch:
            rows.sequence.length += len(rows.tokens)

    def close(self) -> None:
        """Forget the model's memory, so that its file can be unmapped."""
        del self._writer, self._program

    def unembed(self, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits [R][V] of hidden states [R][D], at most as many as rows with logits: the last norm and the head."""
        count = len(hidden)
        self._buffers.residual[:count] = hidden
        self._logit_rows[:count] = array("i", range(count))
        self._samplers[:count] = array("q", [0]) * count
        self._set_counts(count, count, 0)
        self._run_operations(self.layer_begin(self.config.layers), len(self._program))
        return self.logits.copy()

    def _walk(
        self, num_rows: int, num_logits: int, num_spans: int, times: NDArray[np.int64] | None,
        stops: Mapping[int, Callable[[], None]] | None,
    ) -> None:  # fmt: skip
        assert 0 < num_rows <= self.max_rows, num_rows
        assert num_logits <= self.max_logit_rows, num_logits
        self._set_counts(num_rows, num_logits, num_spans)
        begin, started = 0, time.perf_counter()
        if stops:
            for end in sorted(stops):
                self._run_operations(begin, end, times)
                stops[end]()
                begin = end
        self._run_operations(begin, len(self._program), times)
        self.last_seconds = time.perf_counter() - started

    def _run_operations(self, begin: int, end: int, times: NDArray[np.int64] | None = None) -> None:
        self._team.run(
            self._program_address + begin * self._operation_bytes, end - begin, self._step_address,
            0 if times is None else address(times[begin:]),
        )  # fmt: skip

    def _set_counts(self, num_rows: int, num_logits: int, num_spans: int) -> None:
        """All of the step's record that changes from step to step."""
        words = self._step
        words[ROWS], words[LOGIT_COUNT], words[SPAN_COUNT] = num_rows, num_logits, num_spans
        words[SPLIT], words[FEW] = num_rows <= ops.SPLIT_ROWS, num_rows <= ops.OWN_ROWS

    def _step_record(self, addresses: dict[str, int]) -> NDArray[np.int64]:
        """What stays the same from step to step."""
        words = dict.fromkeys(ops.STEP.names, 0)
        return ops.STEP.pack(**(words | addresses | {"table_stride": self._table_stride, "kv": self.cache.address}))
