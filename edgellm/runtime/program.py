"""A planned program as a value: records of int64 words, in which addresses are open until it is bound.

    words     int64: the operations, [count][OPERATION_WORDS], then the records that they point to
    places    which words are addresses: so many bytes from the begin of an arena
    calls     which words are kernels, by name

Bound, it is the table that a team walks; written out, it is what another machine binds.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from edgellm.kernels.ops import OPERATION_WORDS, Record
from edgellm.memory.buffers import address, aligned_zeros
from edgellm.runtime.graph import Mark

RECORDS = "records"  # the arena that the words themselves are


class Ref(NamedTuple):
    """An address: bytes from the begin of an arena."""

    arena: str
    offset: int


class Kernel(NamedTuple):
    """The address of a kernel."""

    name: str


Word = int | Ref | Kernel


@dataclass(frozen=True)
class Program:
    """The operations of a step, not bound to memory."""

    words: NDArray[np.int64]
    places: Mapping[int, str]  # index of a word -> arena; the word is the offset
    calls: Mapping[int, str]  # index of a word -> kernel
    labels: tuple[str, ...]  # of the operations, for people
    marks: Mapping[Mark, int]  # the number of the operation before which each stands

    def bind(self, bases: Mapping[str, int], kernels: Mapping[str, int]) -> NDArray[np.int64]:
        """The words with addresses: `bases` says where arenas begin. The caller keeps them and the result alive."""
        bound = aligned_zeros(len(self.words), np.int64)
        bound[:] = self.words
        bases = {**bases, RECORDS: address(bound)}
        for index, arena in self.places.items():
            bound[index] += bases[arena]
        for index, name in self.calls.items():
            bound[index] = kernels[name]
        return bound

    def to_bytes(self) -> bytes:
        """What `from_bytes` reads: a line of JSON, and the words."""
        header = {
            "places": list(self.places.items()),
            "calls": list(self.calls.items()),
            "labels": self.labels,
            "marks": [[mark.part, mark.layer, at] for mark, at in self.marks.items()],
        }
        return json.dumps(header).encode() + b"\n" + self.words.astype("<i8").tobytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        line, _, words = data.partition(b"\n")
        header = json.loads(line)
        marks = {Mark(part, layer): at for part, layer, at in header["marks"]}
        labels, places, calls = tuple(header["labels"]), dict(header["places"]), dict(header["calls"])
        return cls(np.frombuffer(words, "<i8").astype(np.int64), places, calls, labels, marks)


class ProgramWriter:
    """Collects records; the operations come first."""

    def __init__(self, num_operations: int) -> None:
        self._words: list[Word] = [0] * (num_operations * OPERATION_WORDS)
        self._num_written = 0
        self._records: dict[tuple[Word, ...], Ref] = {}

    def operation(self, record: Record, **words: Word) -> None:
        """The next operation."""
        values = in_order(record, words)
        begin = self._num_written * OPERATION_WORDS
        self._words[begin : begin + len(values)] = values
        self._num_written += 1

    def record(self, record: Record, **words: Word) -> Ref:
        """Another record; equal ones are one."""
        return self.table([in_order(record, words)])

    def table(self, rows: list[tuple[Word, ...]]) -> Ref:
        """Records one after the other."""
        words = tuple(word for row in rows for word in row)
        if words not in self._records:
            self._records[words] = Ref(RECORDS, 8 * len(self._words))
            self._words += words
        return self._records[words]

    def program(self, labels: tuple[str, ...], marks: Mapping[Mark, int]) -> Program:
        assert self._num_written == len(labels), (self._num_written, labels)
        numbers = [word if isinstance(word, int) else getattr(word, "offset", 0) for word in self._words]
        places = {at: word.arena for at, word in enumerate(self._words) if isinstance(word, Ref)}
        calls = {at: word.name for at, word in enumerate(self._words) if isinstance(word, Kernel)}
        return Program(np.array(numbers, np.int64), places, calls, labels, marks)


def in_order(record: Record, words: Mapping[str, Word]) -> tuple[Word, ...]:
    """The words of a record; every one must be named, and only words."""
    assert set(words) == set(record.names), set(words) ^ set(record.names)
    return tuple(words[name] for name in record.names)
