"""A planned program as a value: records of int64 words, in which addresses are open until it is bound.

    words     int64: the operations, [count][OPERATION_WORDS], then the records that they point to
    places    which words are addresses: so many bytes from the begin of an arena
    calls     which words are kernels, by name

Bound, it is the table that a team walks; written out, it is what another machine binds.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
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
        labels = tuple(header["labels"])
        places = dict(header["places"])
        calls = dict(header["calls"])
        return cls(np.frombuffer(words, "<i8").astype(np.int64), places, calls, labels, marks)


class ProgramWriter:
    """Collects records; the operations come first."""

    def __init__(self, num_operations: int) -> None:
        self._numbers = [0] * (num_operations * OPERATION_WORDS)
        self._places: dict[int, str] = {}
        self._calls: dict[int, str] = {}
        self._num_written = 0
        self._records: dict[tuple[Word, ...], Ref] = {}

    def operation(self, record: Record, **words: Word) -> None:
        """The next operation."""
        values = in_order(record, words)
        begin = self._num_written * OPERATION_WORDS
        self._numbers[begin : begin + len(values)] = self._noted(begin, values)
        self._num_written += 1

    def record(self, record: Record, **words: Word) -> Ref:
        """Another record; equal ones are one."""
        return self.table([in_order(record, words)])

    def table(self, rows: list[tuple[Word, ...]]) -> Ref:
        """Records one after the other."""
        words = tuple(chain.from_iterable(rows))
        if words not in self._records:
            begin = len(self._numbers)
            self._records[words] = Ref(RECORDS, 8 * begin)
            self._numbers += self._noted(begin, words)
        return self._records[words]

    def program(self, labels: tuple[str, ...], marks: Mapping[Mark, int]) -> Program:
        assert self._num_written == len(labels), (self._num_written, labels)
        return Program(np.array(self._numbers, np.int64), self._places, self._calls, labels, marks)

    def _noted(self, begin: int, words: tuple[Word, ...]) -> list[int]:
        """The words as numbers, after noting which of them are addresses."""
        numbers = []
        for index, word in enumerate(words, begin):
            if type(word) is Ref:
                self._places[index] = word.arena
                numbers.append(word.offset)
            elif type(word) is Kernel:
                self._calls[index] = word.name
                numbers.append(0)
            else:
                assert isinstance(word, int), word
                numbers.append(word)
        return numbers


def in_order(record: Record, words: Mapping[str, Word]) -> tuple[Word, ...]:
    """The words of a record; every one must be named, and only words."""
    assert words.keys() == record.set_of_names, words.keys() ^ record.set_of_names
    return tuple([words[name] for name in record.names])
