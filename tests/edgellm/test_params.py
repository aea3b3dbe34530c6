"""Sampling parameters are checked when they are made."""

import math

import pytest

from edgellm import SamplingParams
from edgellm.errors import OptionError

BAD = [
    {"temperature": math.nan},
    {"temperature": -0.1},
    {"temperature": math.inf},
    {"temperature": "1"},
    {"temperature": True},
    {"top_p": 0.0},
    {"top_p": 1.1},
    {"top_p": -1},
    {"top_k": -1},
    {"top_k": 1.0},
    {"min_p": -0.1},
    {"min_p": 2},
    {"max_tokens": 0},
    {"max_tokens": -5},
    {"max_tokens": 1.5},
    {"repetition_penalty": 0.0},
    {"presence_penalty": math.nan},
    {"frequency_penalty": math.inf},
    {"seed": -1},
    {"seed": 2**63},
    {"logit_bias": {-1: 1.0}},
    {"logit_bias": {"1": 1.0}},
    {"logit_bias": {1: math.nan}},
    {"typical_p": 0.0},
    {"typical_p": 1.1},
    {"xtc_threshold": -0.1},
    {"xtc_probability": 1.1},
    {"penalty_last_n": -2},
    {"penalty_last_n": 1.5},
    {"dry_multiplier": -1.0},
    {"dry_base": 0.5},
    {"dry_allowed_length": 0},
    {"dry_allowed_length": 65},
    {"dry_penalty_last_n": -2},
    {"dry_sequence_breakers": "\n"},
    {"dry_sequence_breakers": ("",)},
    {"dry_sequence_breakers": (-1,)},
    {"dry_sequence_breakers": (1.0,)},
    {"dry_sequence_breakers": (True,)},
    {"mirostat": 1},
    {"mirostat": 3},
    {"mirostat_tau": 0.0},
    {"mirostat_eta": -0.1},
    {"logprobs": -1},
    {"logprobs": 21},
    {"logprobs": True},
    {"prompt_logprobs": -1},
    {"prompt_logprobs": 21},
    {"prompt_logprobs": 1.0},
    {"prompt_logprobs": 0, "context_policy": "shift"},
    {"sampler_order": "top_k"},
    {"sampler_order": ("top_k", "top_q")},
    {"sampler_order": ("top_k", "min_p", "top_k")},
    {"sampler_order": ("mirostat",)},
    {"sampler_order": (3,)},
    {"stop": "text"},
    {"stop": ("",)},
    {"stop": (1,)},
]


@pytest.mark.parametrize("options", BAD, ids=str)
def test_what_makes_no_sense_is_refused_with_its_name(options: dict[str, object]) -> None:
    with pytest.raises(OptionError, match=next(iter(options))):
        SamplingParams(**options)  # type: ignore[arg-type]


def test_the_edges_are_allowed() -> None:
    SamplingParams(
        temperature=0, top_p=1, top_k=0, min_p=1, seed=2**63 - 1, max_tokens=1, presence_penalty=-2, stop=("a",),
        typical_p=1, xtc_threshold=1, xtc_probability=0, penalty_last_n=-1, dry_base=1, dry_allowed_length=1,
        dry_sequence_breakers=(0, "a"), mirostat=2, logprobs=20, sampler_order=(),
    )  # fmt: skip


def test_the_default_order_is_llama_cpps() -> None:
    """As `llama-server --help` names it, less what we do not have."""
    theirs = "penalties;dry;top_n_sigma;top_k;typ_p;top_p;min_p;xtc;temperature"
    ours = [name.replace("typical_p", "typ_p") for name in SamplingParams().sampler_order]
    assert ours == [name for name in theirs.split(";") if name != "top_n_sigma"]


def test_unknown_options_are_refused() -> None:
    with pytest.raises(TypeError, match="temprature"):
        SamplingParams(temprature=1.0)  # type: ignore[call-arg]
