"""What `edgellm bench` measures: speed, memory, and the bytes that a token costs."""

import random
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

from edgellm import Model, SamplingParams
from edgellm.kernels.kv_formats import kv_formats
from edgellm.memory.layout import state_layout
from edgellm.packed.header import PackedHeader

NEVER = -1e9  # added to the logits of stop tokens, so that every answer has the length asked for
WARM_UP_TOKENS = 8


@dataclass(frozen=True)
class Speed:
    """Of one answer, or the medians of several."""

    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    first_token_ms: float


class Course:
    """Answers random prompts, each another one so that no cache of prefixes helps."""

    def __init__(self, model: Model, num_prompt_tokens: int, num_tokens: int) -> None:
        self._model = model
        self._draw = random.Random(0)
        self._num_prompt_tokens = num_prompt_tokens
        self._num_tokens = num_tokens

    def run(self) -> Speed:
        """One answer, after a small one that is not counted: whoever ran before has taken the caches."""
        self._answer(min(WARM_UP_TOKENS, self._num_prompt_tokens), 2)
        return self._answer(self._num_prompt_tokens, self._num_tokens)

    def _answer(self, num_prompt_tokens: int, num_tokens: int) -> Speed:
        model = self._model
        prompt = [self._draw.randrange(model.network.vocabulary) for _ in range(num_prompt_tokens)]
        bias = dict.fromkeys(model.tokenizer.stop_ids, NEVER)
        with model.generate(
            prompt, SamplingParams(max_tokens=num_tokens, logit_bias=bias, speculation="off")
        ) as stream:
            for _ in stream:
                pass
        timings = stream.timings
        assert len(stream.token_ids) == num_tokens, len(stream.token_ids)
        assert timings.prefill_tokens_per_second and timings.decode_tokens_per_second and timings.first_token_ms
        return Speed(timings.prefill_tokens_per_second, timings.decode_tokens_per_second, timings.first_token_ms)


def median_speed(speeds: list[Speed]) -> Speed:
    return Speed(
        statistics.median(speed.prefill_tokens_per_second for speed in speeds),
        statistics.median(speed.decode_tokens_per_second for speed in speeds),
        statistics.median(speed.first_token_ms for speed in speeds),
    )


def bytes_per_token(header: PackedHeader, position: int, dtype: str = "bf16") -> int:
    """Bytes that decoding the token at a position reads: all weights, once, and the keys and values before it.

    Of the embedding it needs a row, which is not counted; where the embedding is the head too, it needs all of it.
    """
    network = header.network
    layout = state_layout(header.network, kv_formats()[dtype])
    unread = {"tokenizer", *(spec.name for spec in network.optional_tensors)} | ({"embedding"} - {network.head})
    weights = sum(tensor.nbytes for name, tensor in header.table.items() if name.split(".")[0] not in unread)
    return weights + position * layout.token_bytes


def peak_rss_bytes() -> int:
    """The most memory that this process ever had resident, mapped files included."""
    if sys.platform == "linux":  # getrusage there counts what the parent had before exec
        with Path("/proc/self/status").open() as file:
            line = next(line for line in file if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
