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
        temperature=0, top_p=1, top_k=0, min_p=1, seed=2**63 - 1, max_tokens=1, presence_penalty=-2, stop=("a",)
    )


def test_unknown_options_are_refused() -> None:
    with pytest.raises(TypeError, match="temprature"):
        SamplingParams(temprature=1.0)  # type: ignore[call-arg]
