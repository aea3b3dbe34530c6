"""What a backend offers: memory for what models remember, steps, and samplers. No address leaves it.

Backend       a device with its threads, that models of one process share
Runner        one model on it, step by step
SamplerSlot   how one request's tokens are chosen
"""

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgellm.engine.logprobs import Logprobs
from edgellm.engine.params import SamplingParams
from edgellm.families.network import Network
from edgellm.memory.kv import KVCache
from edgellm.memory.sequence import Sequence
from edgellm.memory.store import StateStore
from edgellm.packed.read import PackedModel
from edgellm.runtime.graph import Graph, Mark

Watch = Mapping[Mark, Callable[[], None]]


class SamplerSlot(Protocol):
    """Parameters, text so far and number of draws of one request.

    A step samples at the rows that `prepare` made ready; then the slot is told how many tokens to `accept`.
    """

    seed: int  # that draws begin with

    def prepare(self, drafted: Seq[int] = (), masks: NDArray[np.int32] | None = None) -> None:
        """Make rows ready for the next token and those after each drafted one: row j sees drafted[:j] as if accepted.

        `masks`, int32 [1 + drafted][V/32], allows the tokens with a 1 (bit i of word i/32), row by row. It is read when
        the step samples.
        """

    def chosen(self, j: int) -> int:
        """The token that the last step chose for row j."""

    def logprobs(self, j: int) -> Logprobs | None:
        """Those of row j's token, where asked for; they hold until the next step."""

    def accept(self, count: int = 1) -> list[int]:
        """The tokens that the first `count` rows chose; they count from now on."""

    def append(self, tokens: Seq[int]) -> None:
        """Tokens that were not chosen but given; they count as text of the answer, and take no draw."""


@dataclass(slots=True)  # not frozen, which takes twice the time to make
class Rows:
    """Neighbouring tokens of one sequence, which follow those already in the cache."""

    sequence: Sequence
    tokens: Seq[int]
    logits: Seq[int] = ()  # indices into tokens: whose logits are wanted
    sampler: SamplerSlot | None = None  # chooses at the last of these, as many as it was prepared for


class Runner(Protocol):
    """Runs steps of one model. Not reentrant: one step at a time."""

    network: Network
    cache: KVCache
    graph: Graph  # whose operations `operations` and `times` are of
    max_rows: int  # of a step
    max_logit_rows: int  # of them, with logits
    last_seconds: float  # of the last step

    def start(self, batch: Seq[Rows], *, watch: Watch | None = None, timed: bool = False) -> None:
        """Begin to compute all rows; what they led to is in their samplers and in `logits` after `wait`.

        The keys and values of the rows are appended to their sequences, which must have room reserved. `watch` are
        called when all operations before their marks have ended. With `timed`, `seconds` says where the time went.
        """

    def wait(self) -> None:
        """Return when the step is over."""

    @property
    def logits(self) -> NDArray[np.float32]:
        """Those of the last step, [logit rows][V], valid until the next."""

    @property
    def operations(self) -> Seq[str]:
        """Labels of a step's operations, in order."""

    @property
    def seconds(self) -> NDArray[np.float64]:
        """Of each operation of the last step that was timed, [operations]."""

    def read(self, mark: Mark) -> NDArray[np.float32]:
        """What goes into the operation at a mark, of the step that runs: [rows][D] into a layer, the stream that layers
        add to; [rows][H*E] into attention, its queries, as the KV format prepares them; [logit rows][V] into sampling,
        the logits, and what is changed in these counts.
        """

    def unembed(self, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits [R][V] of hidden states [R][D], at most as many as rows with logits: the last norm and the head."""

    def sampler(self, params: SamplingParams, prompt: Seq[int], breakers: Seq[int] = ()) -> SamplerSlot:
        """A slot for a request; `breakers` are the tokens at which DRY's repetitions end.

        Errors: OptionError for a biased token or a breaker outside the vocabulary.
        """

    def close(self) -> None:
        """Forget the model's memory, so that its file can be unmapped."""


class Backend(Protocol):
    """A device."""

    name: str  # as in BACKENDS; those of one name compute the same bits
    description: str  # for people: its instruction set, say
    threads: int  # that work on a step
    leaves_a_processor: bool  # for other threads of the process, while steps run

    @property
    def store(self) -> Callable[..., StateStore]:
        """What makes the memory of a KV cache: HostStore, or one with its arguments."""

    def open(self, packed: PackedModel, cache: KVCache, *, context: int, max_rows: int, max_logit_rows: int) -> Runner:
        """A model, for steps of `max_rows` rows at most, `max_logit_rows` of them with logits; positions are below
        `context`.
        """

    def close(self) -> None:
        """End its threads. A step that runs is finished first by its caller."""


def run_step(runner: Runner, batch: Seq[Rows], *, watch: Watch | None = None, timed: bool = False) -> None:
    """A step, and wait for it."""
    runner.start(batch, watch=watch, timed=timed)
    runner.wait()
