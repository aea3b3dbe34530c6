"""Looking into a step: hidden states, attention, logits and times of the rows that somebody is curious about.

Costs nothing where nobody asks. A step that is watched is walked in parts, between which its buffers are read.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edgellm.backends.base import Rows, Runner, Watch, run_step
from edgellm.errors import OptionError
from edgellm.families.network import Attention, Network
from edgellm.kernels.ops import KV_BLOCK
from edgellm.memory.kv import KVCache
from edgellm.memory.sequence import Sequence
from edgellm.runtime.graph import Mark

Array = NDArray[np.float32]


@dataclass
class Observation:
    """What was seen of one request in one step, in which it had R rows at neighbouring positions."""

    first_position: int
    tokens: list[int]  # [R] computed; drafted ones come last
    logits: Array | None = None  # [n][V] of the last n rows, where the next token was chosen
    hidden: dict[int, Array] = field(default_factory=dict)  # layer -> [R][D]; 0 is the embedding, L the last layer's
    attention: dict[tuple[int, int], Array] = field(default_factory=dict)  # (layer, head) -> [R][positions], sums 1
    seconds: dict[str, float] = field(default_factory=dict)  # operation -> time of the step, all requests together
    num_drafted: int = 0
    num_accepted: int = 0


@dataclass(frozen=True)
class Probe:
    """What to look at, at every step of a request; `callback` gets an Observation. Layers count from 0.

    hidden     states to copy: 0 is the embedding, l the output of layer l - 1
    attention  (layer, head) pairs whose weights are computed again, in NumPy
    """

    callback: Callable[[Observation], None]
    logits: bool = False
    hidden: Iterable[int] = ()
    attention: Iterable[tuple[int, int]] = ()
    timings: bool = False

    def check(self, network: Network) -> None:
        """Errors: OptionError for layers or heads that the model has not."""
        count = len(network.layers)
        for layer in self.hidden:
            if not 0 <= layer <= count:
                raise OptionError(f"hidden state {layer!r} is not in 0..{count}")
        for layer, head in self.attention:
            mixer = network.layers[layer].mixer if 0 <= layer < count else None
            if not (isinstance(mixer, Attention) and 0 <= head < mixer.heads):
                heads = f"{mixer.heads} heads" if isinstance(mixer, Attention) else "no attention there"
                raise OptionError(f"attention of layer {layer!r}, head {head!r}: there are {count} layers, and {heads}")


def run_watched(
    runner: Runner, batch: list[Rows], probes: list[Probe | None], also: Watch | None = None
) -> list[Observation | None]:
    """Run a step and look at the rows of those with a probe; `also` is watched too."""
    observations = [
        None if probe is None else Observation(rows.sequence.length, list(rows.tokens))
        for rows, probe in zip(batch, probes, strict=True)
    ]
    counts = [len(rows.tokens) for rows in batch]
    places = [slice(end - count, end) for end, count in zip(np.cumsum(counts), counts, strict=True)]
    watch: defaultdict[Mark, list[Callable[[], None]]] = defaultdict(list)
    for rows, probe, seen, place in zip(batch, probes, observations, places, strict=True):
        if probe is None or seen is None:
            continue
        for layer in probe.hidden:
            mark = Mark("layer", layer)
            watch[mark].append(_Copy(seen.hidden, layer, runner, place))
        for layer, head in probe.attention:
            look = _Attention(seen.attention, layer, head, runner, rows.sequence, place)
            watch[Mark("attention", layer)].append(look)
    for mark, look_too in (also or {}).items():
        watch[mark].append(look_too)
    run_step(runner, batch, watch={mark: _all_of(looks) for mark, looks in watch.items()}, timed=True)
    logits = runner.logits
    at = 0
    for rows, probe, seen in zip(batch, probes, observations, strict=True):
        if probe is not None and seen is not None:
            seen.logits = logits[at : at + len(rows.logits)].copy() if probe.logits else None
            seen.seconds = _seconds(runner) if probe.timings else {}
        at += len(rows.logits)
    return observations


class _Copy:
    def __init__(self, into: dict[int, Array], layer: int, runner: Runner, place: slice) -> None:
        self._into = into
        self._layer = layer
        self._runner = runner
        self._place = place

    def __call__(self) -> None:
        self._into[self._layer] = self._runner.read(Mark("layer", self._layer))[self._place].copy()


class _Attention:
    def __init__(
        self, into: dict[tuple[int, int], Array], layer: int, head: int, runner: Runner, sequence: Sequence,
        place: slice,
    ) -> None:  # fmt: skip
        self._into = into
        self._layer = layer
        self._head = head
        self._runner = runner
        self._sequence = sequence
        self._place = place

    def __call__(self) -> None:
        mixer = self._runner.network.layers[self._layer].mixer
        first = self._sequence.length
        queries = self._runner.read(Mark("attention", self._layer))[self._place]
        q = queries.reshape(-1, mixer.heads, mixer.head_size)[:, self._head]
        seen = first + len(q)
        kv_head = self._head // (mixer.heads // mixer.kv_heads)
        keys = read_keys(self._runner.cache, self._sequence, self._layer, kv_head, seen)
        age = first + np.arange(len(q))[:, None] - np.arange(seen)
        visible = (age >= 0) & (age < (mixer.window or seen))
        scores = np.where(visible, q @ keys.T, np.float32(-np.inf))  # queries are scaled, by log2(e) as well
        weights: Array = np.exp2(scores - scores.max(-1, keepdims=True))
        self._into[self._layer, self._head] = weights / weights.sum(-1, keepdims=True)


def read_keys(cache: KVCache, sequence: Sequence, layer: int, kv_head: int, count: int) -> NDArray[np.float32]:
    """Keys of a sequence's first `count` positions, as the queries want them, float32 [count][E].

    They are zeros where a window has lost them.
    """
    found = cache.layout.layer(layer)
    group = cache.layout.group_of[layer]
    begin = found.offset + kv_head * found.head_stride
    result = np.zeros((-(-count // KV_BLOCK) * KV_BLOCK, found.state.head_size), np.float32)
    for number, block in enumerate(sequence.blocks[: len(result) // KV_BLOCK]):
        if cache.has_block(block, group):
            view = cache.block_view(block, group)[begin : begin + found.head_stride]
            keys, _ = cache.layout.kv_format.read(view, found.state.head_size)
            result[number * KV_BLOCK :][:KV_BLOCK] = keys
    return result[:count]


def _all_of(looks: list[Callable[[], None]]) -> Callable[[], None]:
    def look() -> None:
        for one in looks:
            one()

    return look


def _seconds(runner: Runner) -> dict[str, float]:
    """Time by kind of operation."""
    total: defaultdict[str, float] = defaultdict(float)
    for label, seconds in zip(runner.operations, runner.seconds.tolist(), strict=True):
        total[label] += seconds
    return dict(total)
