"""A model in plain NumPy: the graph as its family says it, an operation after the other, each a row at a time.

Sums are float64, by the functions of kernels/reference.py, and what is kept lies in memory as it does for kernels. A
row's numbers come from its own values and its own text alone, so that chunks and other requests cannot change a bit.
"""

import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgellm.backends.base import Rows, Watch
from edgellm.backends.naive.sampler import NaiveSampler
from edgellm.engine.params import SamplingParams
from edgellm.families.blocks import frequencies
from edgellm.kernels import reference
from edgellm.kernels.ops import CHUNK, KV_BLOCK
from edgellm.memory.kv import ZERO_SLOT, KVCache
from edgellm.memory.sequence import Sequence
from edgellm.memory.store import Bytes, HostStore
from edgellm.packed.read import PackedModel
from edgellm.runtime.build import network_graph
from edgellm.runtime.graph import LayerState, Mark, Operand, Operation, Tensor, Value

Floats = NDArray[np.float64]
Operands = dict[str, Any]  # by name: floats of one row, a whole tensor, or what the graph says
# What asks for nothing but its operands
PLAIN: dict[str, Callable[[Operands], Floats]] = {
    "norm": lambda x: reference.norm(x["x"], x["weight"], x["epsilon"]),
    "quantize": lambda x: reference.dequantize(*reference.quantize(x["x"])),
    "product": lambda x: x["weight"] @ x["x"],
    "swiglu": lambda x: reference.silu(x["gate"]) * x["up"],
    "add": lambda x: x["x"] + x["y"],
}


class _Row(NamedTuple):
    token: int
    position: int
    sequence: Sequence


class NaiveRunner:
    """Runs steps of one model: Runner. All is over when `start` returns."""

    def __init__(
        self, packed: PackedModel, cache: KVCache, *, context: int, max_rows: int, max_logit_rows: int
    ) -> None:  # fmt: skip
        assert isinstance(cache.store, HostStore)
        self.network = packed.network
        self.cache = cache
        self.last_seconds = 0.0
        self.max_rows = max_rows
        self.max_logit_rows = max_logit_rows
        self.graph = network_graph(packed.network)
        self.operations = [op.label for op in self.graph.operations]
        self.seconds = np.zeros(len(self.operations))
        self.logits = np.zeros((0, self.network.vocabulary), np.float32)
        self._context = context
        self._store = cache.store
        self._states = cache.layout
        self._packed, self._tensors = packed, dict[str, Floats]()  # those used so far
        self._batch: Seq[Rows] = ()
        self._rows: list[_Row] = []
        self._wanted: list[int] = []  # rows whose logits are
        self._has_logits = False  # whether `logits` are those of the step that runs
        self._values: dict[Value, list[Floats]] = {}  # of each row
        self._keys: list[Floats] = []  # of each row, until its values come
        self._compute = {"embed": self._embed, "rotate": self._rotate, "keep": self._keep, "attend": self._attend}

    def start(self, batch: Seq[Rows], *, watch: Watch | None = None, timed: bool = False) -> None:
        """Compute all rows: Runner.start."""
        began = time.perf_counter()
        self._batch = batch
        self._rows = []
        self._wanted = []
        self._values = {}
        self._has_logits = False
        for rows in batch:
            first = rows.sequence.length
            sequence = rows.sequence
            assert sequence.has_room(len(rows.tokens)), "room was not reserved"
            assert first + len(rows.tokens) <= self._context
            self._wanted += [len(self._rows) + index for index in rows.logits]
            self._rows += [_Row(token, first + at, sequence) for at, token in enumerate(rows.tokens)]
        assert 0 < len(self._rows) <= self.max_rows and len(self._wanted) <= self.max_logit_rows
        seconds = self._walk(0, watch or {})
        if timed:
            self.seconds = seconds
        for rows in batch:
            rows.sequence.advance(len(rows.tokens))
        self.last_seconds = time.perf_counter() - began

    def wait(self) -> None:
        """Nothing is left to do after `start`."""

    def read(self, mark: Mark) -> NDArray[np.float32]:
        """What goes into the operation at a mark: Runner.read."""
        op = self.graph.operations[self.graph.marks()[mark]]
        if op.kind == "sample":
            return self._logits(op)
        x = op.operands.get("q", op.operands.get("x"))
        assert isinstance(x, Value), op
        rows = np.array(self._values[x])
        if op.kind == "attend":
            rows = self._states.kv_format.prepare(_heads(rows, op.operands)).reshape(rows.shape)
        return rows.astype(np.float32)

    def unembed(self, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits [R][V] of hidden states [R][D]: Runner.unembed."""
        first = self.graph.marks()[Mark("layer", len(self.network.layers))]
        x = self.graph.operations[first].operands["x"]
        assert isinstance(x, Value)
        self._batch = ()
        self._wanted = list(range(len(hidden)))
        self._values = {x: list(hidden.astype(np.float64))}
        self._has_logits = False
        self._walk(first, {})
        return self.logits

    def sampler(self, params: SamplingParams, prompt: Seq[int], breakers: Seq[int] = ()) -> NaiveSampler:
        """A slot for a request: Runner.sampler."""
        return NaiveSampler(params, self.network.vocabulary, prompt, breakers)

    def close(self) -> None:
        """Forget the model's memory, so that its file can be unmapped."""
        del self._packed, self._tensors, self._values

    def _walk(self, first: int, watch: Watch) -> Floats:
        """Operations from the first on; returns the seconds of each."""
        seconds = np.zeros(len(self.operations))
        for number, op in enumerate(self.graph.operations[first:], first):
            for mark in op.marks:
                if mark in watch:
                    watch[mark]()
            began = time.perf_counter()
            self._run(op)
            seconds[number] = time.perf_counter() - began
        return seconds

    def _run(self, op: Operation) -> None:
        if op.kind == "sample":
            self._sample(op)
            return
        if op.kind == "select":
            x = op.operands["x"]
            assert isinstance(x, Value)
            outputs = [self._values[x][row] for row in self._wanted]
        else:
            is_selected = any(value.is_selected for value in op.reads)
            count = len(self._wanted) if is_selected else len(self._rows)
            outputs = [self._row(op, row) for row in range(count)]
        if op.output is not None:
            self._values[op.output] = outputs

    def _row(self, op: Operation, row: int) -> Any:
        """One row's output."""
        x = self._operands(op, row)
        if op.call is not None:
            return self._call(op, row, x)
        return PLAIN[op.kind](x) if op.kind in PLAIN else self._compute[op.kind](row, x)

    def _operands(self, op: Operation, row: int) -> Operands:
        def found(operand: Operand) -> Any:
            match operand:
                case Value():
                    return self._values[operand][row]
                case Tensor():
                    return self._tensor(operand.name)
            return operand

        return {name: found(operand) for name, operand in op.operands.items()}

    def _tensor(self, name: str) -> Floats:
        if name not in self._tensors:
            found = self._packed.vector(name) if name in self._packed else self._packed.matrix(name)
            self._tensors[name] = found.astype(np.float64)
        return self._tensors[name]

    # Operations on one row, by its number in the step

    def _embed(self, row: int, x: Operands) -> Floats:
        embedded: Floats = reference.embed(x["weight"], np.array(self._rows[row].token)).astype(np.float64)
        return embedded

    def _rotate(self, row: int, x: Operands) -> Floats:
        heads = _heads(x["x"], x)
        if x["rope"] is not None:
            turns = frequencies(x["rope"].rope, self._packed)
            heads = reference.rope(heads[None], np.array([self._rows[row].position]), turns)
        rotated: Floats = heads.reshape(-1) * x["scale"]
        return rotated

    def _keep(self, row: int, x: Operands) -> None:
        """Keys wait for the values of their row, with which they are written."""
        heads = _heads(x["x"], x)
        if x["what"] == "key":
            del self._keys[row:]  # of the layer before
            self._keys.append(self._states.kv_format.prepare(heads))
            return
        _, position, sequence = self._rows[row]
        block, slot = divmod(position, KV_BLOCK)
        for head, (key, value) in enumerate(zip(self._keys[row], heads, strict=True)):
            self._states.kv_format.write(self._head(sequence, x["state"], block, head), slot, key, value)

    def _attend(self, row: int, x: Operands) -> Floats:
        _, position, sequence = self._rows[row]
        kv_format = self._states.kv_format
        window = x["window"] or position + 1
        seen = max(0, position - window + 1)  # the first position that is
        first = seen // CHUNK * CHUNK
        kept = np.zeros((2, -(-(position + 1 - first) // KV_BLOCK) * KV_BLOCK, x["kv_heads"], x["head_size"]))
        for block in range(seen // KV_BLOCK, position // KV_BLOCK + 1):  # there is nothing to read in others
            for head in range(x["kv_heads"]):
                found = kv_format.read(self._head(sequence, x["state"], block, head), x["head_size"])
                kept[:, block * KV_BLOCK - first :, head][:, :KV_BLOCK] = found
        keys, values = kept[:, : position + 1 - first]
        q = kv_format.prepare(_heads(x["q"], x))[None]
        attended: Floats = reference.attend(
            q, keys, values, position - first, dtype=kv_format.name, window=window
        ).reshape(-1)  # fmt: skip
        return attended

    def _head(self, sequence: Sequence, state: LayerState, block: int, head: int) -> Bytes:
        """A head's keys and values in a block of a sequence."""
        group = self._states.group_of[state.layer]
        layer = self._states.layer(state.layer)
        begin = layer.offset + head * layer.head_stride
        return self._store.read(group, sequence.tables(group)[block])[begin : begin + layer.head_stride]

    def _call(self, op: Operation, row: int, x: Operands) -> Floats:
        """A family's own kernel, by its twin."""
        assert op.call is not None
        inputs = []
        states = []
        others = {}
        for name, operand in op.operands.items():
            match operand:
                case Value():
                    inputs.append(x[name])
                case LayerState():
                    states.append(self._state(row, operand))
                case _:
                    others[name] = x[name]
        output: Floats = op.call.twin(*inputs, *states, **others)
        return output

    def _state(self, row: int, state: LayerState) -> NDArray[np.float32]:
        """What a layer remembers before a row, where the step leaves it: a twin makes it what it is after the row."""
        assert self._states.slots is not None
        layer = self._states.slots.layers[state.layer]
        (_, position, sequence) = self._rows[row]
        assert sequence.next_slot != ZERO_SLOT, "room was not reserved"

        def at(slot: int) -> NDArray[np.float32]:
            size = 4 * int(np.prod(layer.shape))
            data = self._store.read_slot(slot)[layer.offset : layer.offset + size]
            return data.view(np.float32).reshape(layer.shape)

        if position == sequence.length:  # its first row of this step
            at(sequence.next_slot)[:] = at(sequence.slot)
        return at(sequence.next_slot)

    def _logits(self, op: Operation) -> NDArray[np.float32]:
        """Those that go into sampling, which somebody may have changed."""
        if not self._has_logits:
            x = op.operands["logits"]
            assert isinstance(x, Value)
            self.logits = np.array(self._values[x], np.float32).reshape(-1, x.width)
            self._has_logits = True
        return self.logits

    def _sample(self, op: Operation) -> None:
        logits = self._logits(op)
        end = 0
        for rows in self._batch:
            end += len(rows.logits)
            if rows.sampler is not None:
                assert isinstance(rows.sampler, NaiveSampler)
                rows.sampler.choose(logits[end - rows.sampler.num_rows : end])


def _heads(x: Floats, operands: Any) -> Floats:
    """[..][H*E] -> [..][H][E]"""
    return x.reshape(*x.shape[:-1], -1, operands["head_size"])


class NaiveBackend:
    """The interpreter's own thread: Backend."""

    name = description = "naive"
    threads = 1
    leaves_a_processor = False  # NumPy on single rows hardly lets go of the interpreter

    @property
    def store(self) -> type[HostStore]:
        """The process's memory."""
        return HostStore

    def open(
        self, packed: PackedModel, cache: KVCache, *, context: int, max_rows: int, max_logit_rows: int
    ) -> NaiveRunner:
        """A model: Backend.open."""
        return NaiveRunner(packed, cache, context=context, max_rows=max_rows, max_logit_rows=max_logit_rows)

    def close(self) -> None:
        """There is nothing to end."""
