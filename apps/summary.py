"""What there is to say about an answer when it has ended."""

from edgellm import SamplingParams, Stream


def summary(stream: Stream) -> str:
    """Usage and timings on a line."""
    usage = stream.usage
    timings = stream.timings
    parts = [f"{usage.num_prompt_tokens} + {usage.num_completion_tokens} tokens"]
    if usage.num_cached_tokens:
        parts.append(f"{usage.num_cached_tokens} of them cached")
    if usage.num_dropped_tokens:
        parts.append(f"{usage.num_dropped_tokens} dropped")
    if timings.first_token_ms is not None:
        parts.append(f"first after {timings.first_token_ms:.0f} ms")
    if timings.prefill_tokens_per_second is not None:
        parts.append(f"prefill {timings.prefill_tokens_per_second:.0f} tokens/s")
    if timings.decode_tokens_per_second is not None:
        parts.append(f"decode {timings.decode_tokens_per_second:.1f} tokens/s")
    if usage.num_drafted_tokens:
        parts.append(f"{usage.num_accepted_tokens} of {usage.num_drafted_tokens} drafted tokens right")
    return "[" + ", ".join(parts) + "]"


def filled_context(stream: Stream, params: SamplingParams) -> bool:
    """Whether an answer ended for want of room, and not because it was as long as was asked for."""
    return stream.finish_reason == "length" and len(stream.token_ids) != params.max_tokens
