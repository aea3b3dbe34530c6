"""What sampling parameters ask for, whatever the backend."""

from collections.abc import Iterable

from edgellm.engine.params import SamplingParams
from edgellm.errors import OptionError


def acting_samplers(params: SamplingParams) -> list[str]:
    """The samplers that change something, of kernels.ops.SAMPLERS, in the order in which they act."""
    penalties = (params.repetition_penalty - 1, params.presence_penalty, params.frequency_penalty)
    acts = {"penalties": any(penalties), "dry": params.dry_multiplier > 0}
    draws = params.temperature > 0
    mirostat = params.mirostat != 0
    if draws:
        acts["temperature"] = params.temperature != 1
    if draws and not mirostat:
        acts["top_k"] = params.top_k > 0
        acts["typical_p"], acts["top_p"] = params.typical_p < 1, params.top_p < 1
        acts["min_p"], acts["xtc"] = params.min_p > 0, params.xtc_probability > 0
    names = [name for name in params.sampler_order if acts.get(name)]
    return [*names, "mirostat"] if draws and mirostat else names


def check_tokens(option: str, tokens: Iterable[int], vocabulary: int) -> None:
    """Errors: OptionError for a token outside the vocabulary."""
    outside = [token for token in tokens if token >= vocabulary]
    if outside:
        raise OptionError(f"{option} names token {outside[0]}, the vocabulary has {vocabulary}")
