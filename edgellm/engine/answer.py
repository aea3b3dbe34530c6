"""An answer as a value: what it says, why it ends there, and what it took."""

from dataclasses import dataclass

from edgellm.engine.detokenizer import FinishReason
from edgellm.engine.logprobs import Logprobs
from edgellm.memory.prefix import CacheReport


@dataclass(frozen=True)
class Usage:
    num_prompt_tokens: int
    num_cached_tokens: int  # of the prompt, not computed again
    num_completion_tokens: int  # with the stop token
    num_dropped_tokens: int = 0  # that a full context shifted out
    num_drafted_tokens: int = 0  # proposed to the model
    num_accepted_tokens: int = 0  # of these, right


@dataclass(frozen=True)
class Timings:
    """None where nothing of the kind was computed. But for the queue, it is time of the steps that computed the answer,
    without what the caller did between pieces.
    """

    queue_ms: float | None  # from the request until a step first takes it in
    first_token_ms: float | None  # of steps up to the first token
    prefill_tokens_per_second: float | None
    decode_tokens_per_second: float | None


@dataclass(frozen=True)
class Answer:
    """What a request led to. `str(answer)` is its text."""

    text: str
    token_ids: list[int]  # with the stop token
    logprobs: list[Logprobs | None]  # of these: None where not asked for, and where a constraint forced the token
    finish_reason: FinishReason | None
    stop_reason: int | str | None  # the token, or the text of SamplingParams.stop, that ended it
    prompt_token_ids: list[int]
    prompt_logprobs: list[Logprobs]  # of the prompt's tokens after the first; none unless asked for
    usage: Usage
    timings: Timings
    seed: int  # with which the same answer comes again
    cache_report: CacheReport | None  # what the prefix cache knew of the prompt

    def __str__(self) -> str:
        return self.text
