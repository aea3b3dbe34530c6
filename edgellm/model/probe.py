"""Looking into a step: hidden states, attention, logits and times of the rows that somebody is curious about.

Costs nothing where nobody asks. A step that is watched is walked in parts, between which its buffers are read.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.config import ModelConfig
from edgellm.errors import OptionError
from edgellm.kernels.ops import KV_BLOCK
from edgellm.memory.kv import KVCache, Sequence
from edgellm.model.step import Rows, Stepper

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

    def check(self, config: ModelConfig) -> None:
        """Errors: OptionError for layers or heads that the model has not."""
        for layer in self.hidden:
            if not 0 <= layer <= config.layers:
                raise OptionError(f"hidden state {layer!r} is not in 0..{config.layers}")
        for layer, head in self.attention:
            if not (0 <= layer < config.layers and 0 <= head < config.heads):
                raise OptionError(
                    f"attention of layer {layer!r}, head {head!r}: there are {config.layers} layers of {config.heads}"
                )


def run_watched(stepper: Stepper, batch: list[Rows], probes: list[Probe | None]) -> list[Observation | None]:
    """Run a step and look at the rows of those with a probe."""
    observations = [
        None if probe is None else Observation(rows.sequence.length, list(rows.tokens))
        for rows, probe in zip(batch, probes, strict=True)
    ]
    counts = [len(rows.tokens) for rows in batch]
    places = [slice(end - count, end) for end, count in zip(np.cumsum(counts), counts, strict=True)]
    stops: defaultdict[int, list[Callable[[], None]]] = defaultdict(list)
    for rows, probe, seen, place in zip(batch, probes, observations, places, strict=True):
        if probe is None or seen is None:
            continue
        for layer in probe.hidden:
            stops[stepper.layer_begin(layer)].append(_Copy(seen.hidden, layer, stepper.residual, place))
        for layer, head in probe.attention:
            look = _Attention(seen.attention, layer, head, stepper, rows.sequence, place)
            stops[stepper.attention_begin(layer)].append(look)
    times = np.zeros(len(stepper.operations) + 1, np.int64)
    stepper.run(batch, times, {at: _all_of(looks) for at, looks in stops.items()})
    logits, at = stepper.logits, 0
    for rows, probe, seen in zip(batch, probes, observations, strict=True):
        if probe is not None and seen is not None:
            seen.logits = logits[at : at + len(rows.logits)].copy() if probe.logits else None
            seen.seconds = _seconds(stepper, times) if probe.timings else {}
        at += len(rows.logits)
    return observations


class _Copy:
    def __init__(self, into: dict[int, Array], layer: int, residual: Array, place: slice) -> None:
        self._into, self._layer, self._residual, self._place = into, layer, residual, place

    def __call__(self) -> None:
        self._into[self._layer] = self._residual[self._place].copy()


class _Attention:
    def __init__(
        self, into: dict[tuple[int, int], Array], layer: int, head: int, stepper: Stepper, sequence: Sequence,
        place: slice,
    ) -> None:  # fmt: skip
        self._into, self._layer, self._head = into, layer, head
        self._stepper, self._sequence, self._place = stepper, sequence, place

    def __call__(self) -> None:
        config, first = self._stepper.config, self._sequence.length
        q = self._stepper.query[self._place].reshape(-1, config.heads, config.head_size)[:, self._head]
        seen = first + len(q)
        kv_head = self._head // (config.heads // config.kv_heads)
        keys = read_keys(self._stepper.cache, config, self._sequence, self._layer, kv_head, seen)
        age = first + np.arange(len(q))[:, None] - np.arange(seen)
        visible = (age >= 0) & (age < (config.sliding_window or seen))
        scores = np.where(visible, q @ keys.T, np.float32(-np.inf))  # queries are scaled, by log2(e) as well
        weights: Array = np.exp2(scores - scores.max(-1, keepdims=True))
        self._into[self._layer, self._head] = weights / weights.sum(-1, keepdims=True)


def read_keys(
    cache: KVCache, config: ModelConfig, sequence: Sequence, layer: int, kv_head: int, count: int
) -> NDArray[np.float32]:
    """Keys of a sequence's first `count` positions, as the buffer of queries wants them, float32 [count][E].

    kernels/ops.py says how they lie.
    """
    size = config.head_size
    offset = layer * cache.layer_stride + kv_head * cache.head_stride
    result = np.empty((-(-count // KV_BLOCK) * KV_BLOCK, size), np.float32)
    for number, block in enumerate(sequence.blocks[: len(result) // KV_BLOCK]):
        data = cache.block_view(block)[offset : offset + cache.head_stride]
        keys: Any
        if cache.dtype == "bf16":
            keys = _bf16(data[: size * KV_BLOCK * 2])
            keys = keys.reshape(size // 2, KV_BLOCK, 2).transpose(1, 0, 2).reshape(KV_BLOCK, size)
        else:
            scales = _bf16(data[2 * size * KV_BLOCK :][: size // 32 * KV_BLOCK * 2]).reshape(size // 32, KV_BLOCK)
            codes = data[: size * KV_BLOCK].view(np.int8).reshape(size, KV_BLOCK)
            keys = codes.T * scales.T.repeat(32, axis=1)
        result[number * KV_BLOCK : (number + 1) * KV_BLOCK] = keys
    return result[:count]


def _bf16(data: NDArray[np.uint8]) -> Array:
    return (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def _all_of(looks: list[Callable[[], None]]) -> Callable[[], None]:
    def look() -> None:
        for one in looks:
            one()

    return look


def _seconds(stepper: Stepper, times: NDArray[np.int64]) -> dict[str, float]:
    """Time by kind of operation; ticks are the processor's, and the step's seconds say how long one is."""
    ticks: defaultdict[str, int] = defaultdict(int)
    for name, taken in zip(stepper.operations, np.diff(times).tolist(), strict=True):
        ticks[name] += taken
    second = (times[-1] - times[0]) / stepper.last_seconds
    return {name: taken / second for name, taken in ticks.items()}
