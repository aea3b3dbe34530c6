"""Requests share steps: nobody waits for another's end, and who goes away frees what it had."""

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import edgellm
from edgellm import Model, SamplingParams
from edgellm.backends.base import Rows
from edgellm.engine import model as model_module
from edgellm.engine.constrain import Regex
from edgellm.engine.masks import Masks
from edgellm.engine.request import Request
from edgellm.engine.stream import Stream
from edgellm.errors import ContextLengthError, GrammarError, KVMemoryError
from edgellm.memory.prefix import PrefixCache
from tests.edgellm.engine.conftest import on_both_backends
from tests.edgellm.engine.requests import CONTEXT, HAS_CONSTRAINTS

PROMPT = [5, 80, 90, 100, 7]
LETTER = 90  # a token that no text ends with
FOREVER = SamplingParams(logit_bias={LETTER: 1000.0}, speculation="off")


def longest(seed: int, count: int = CONTEXT - 20) -> list[int]:
    """A prompt that shares nothing with another seed's."""
    return [3 + (seed + 1) * (place + 1) * 7 % 260 for place in range(count)]


def num_rows(step: list[Rows]) -> int:
    return sum(len(rows.tokens) for rows in step)


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> int:
    """Models load with steps of this many rows, so that long prompts take several."""
    monkeypatch.setattr(model_module, "step_rows", lambda nbytes: 40)
    return 40


def test_a_short_request_does_not_wait_for_a_long_prompt(
    small_steps: int, model: Model, steps: list[list[Rows]]
) -> None:
    long = model.generate(longest(0), FOREVER)
    short = model.generate(PROMPT, FOREVER)
    next(short)
    assert len(steps) == 1, "its prompt fits the first step beside a part of the long one"
    assert len(steps[0]) == 2 and num_rows(steps[0]) <= small_steps
    assert long.token_ids == []
    while not long.token_ids:
        next(short)
    assert len(short.token_ids) >= 5, "and its tokens go on coming"
    for stream in (long, short):
        stream.close()


def test_a_short_request_that_comes_during_a_long_prompt_does_not_wait(
    small_steps: int, model: Model, steps: list[list[Rows]]
) -> None:
    with model.generate(PROMPT, FOREVER) as company, model.generate(longest(1), FOREVER) as long:
        next(company)
        next(company)
        before = len(steps)
        with model.generate(PROMPT[1:], FOREVER) as short:
            next(short)
        assert len(steps) == before + 1
        assert long.token_ids == []


def test_a_prompt_alone_takes_whole_steps(small_steps: int, model: Model, steps: list[list[Rows]]) -> None:
    with model.generate(longest(2), FOREVER) as stream:
        next(stream)
    assert len(steps) == -(-len(longest(2)) // small_steps)


def test_requests_read_one_after_the_other_are_computed_together(model: Model, steps: list[list[Rows]]) -> None:
    params = replace(FOREVER, max_tokens=20)
    streams = [model.generate([5 + number, *PROMPT], params) for number in range(4)]
    for stream in streams:
        assert len(list(stream)) == 20
    assert len(steps) == 20
    assert all(len(step) == 4 for step in steps)


def test_a_step_never_has_more_rows_than_it_takes(
    path: Path, monkeypatch: pytest.MonkeyPatch, steps: list[list[Rows]]
) -> None:
    """Forty requests on steps of fewer rows, prompts and decoding mixed; a context shorter than a draft, too."""
    monkeypatch.setattr(model_module, "step_rows", lambda nbytes: 35)
    with small(path, 100, context=64) as model:
        streams = [model.generate(longest(s, 3 + s), replace(FOREVER, max_tokens=20)) for s in range(40)]
        assert [len(list(stream)) for stream in streams] == [20] * 40
    assert max(map(num_rows, steps)) <= 35
    assert max(map(len, steps)) == 32
    for context in (1, 2, 9):
        with edgellm.load(path, threads=1, context=context) as model:
            assert len(list(model.generate([5] * context, FOREVER))) == 1
            stream = model.generate([5], replace(FOREVER, context_policy="shift", max_tokens=30, speculation="on"))
            assert len(list(stream)) == 30


@pytest.mark.parametrize("read", [0, 1, 3])
def test_closing_frees_the_memory_at_once(model: Model, read: int, steps: list[list[Rows]]) -> None:
    free = model.num_free_blocks
    stream, other = model.generate(longest(3), FOREVER), model.generate(PROMPT, FOREVER)
    for _ in range(read):
        next(stream)
        next(other)
    stream.close()
    assert stream.finish_reason == "cancelled"
    other.close()
    assert model.num_free_blocks == free


def test_a_request_cancelled_during_a_step_is_in_no_further_one(
    model: Model, steps: list[list[Rows]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is closed by another thread, from within its own third step."""
    victim, other = model.generate(longest(4), FOREVER), model.generate(PROMPT, FOREVER)
    take, free = Request.take, []

    def taking(self: Request, *taken: Any) -> None:
        if len(steps) == 3:
            closer = threading.Thread(target=victim.close)
            closer.start()
            closer.join(10)
            assert not closer.is_alive(), "closing never waits"
        take(self, *taken)

    monkeypatch.setattr(Request, "take", taking)
    for _ in range(6):
        next(other)
        free.append(model.num_free_blocks)
    assert [len(step) for step in steps] == [2, 2, 2, 1, 1, 1]
    assert free[2] == free[3] > free[1]
    assert victim.finish_reason == "cancelled"
    assert len(list(victim)) == 2, "its prompt took two of its three steps"
    other.close()


def small(path: Path, blocks: int, context: int = CONTEXT, device: str = "cpu") -> Model:
    with edgellm.load(path, device=device, threads=1) as model:
        nbytes = blocks * model.block_bytes
    return edgellm.load(path, device=device, threads=2, context=context, kv_memory=nbytes)


@on_both_backends
def test_where_memory_is_short_the_highest_priority_goes_first(path: Path, backend: str) -> None:
    """Three that need four blocks each, in six: whoever came first, and the highest before it."""
    with small(path, 6, device=backend) as model:
        params = replace(FOREVER, max_tokens=20)
        streams = [model.generate(longest(seed, 100), params, priority=seed // 2) for seed in range(3)]
        order = []
        for number in (0, 1, 2):  # whoever reads
            for piece in streams[number]:
                assert piece.token_id == LETTER
                order += [s for s in range(3) if streams[s].finish_reason and s not in order]
        assert order == [2, 0, 1]
        assert model.num_free_blocks == 6


@on_both_backends
def test_priority_decides_who_is_in_a_full_batch(path: Path, backend: str) -> None:
    with small(path, 64, device=backend) as model:
        params = replace(FOREVER, max_tokens=3)
        low = [model.generate(longest(seed, 3), params) for seed in range(40)]
        high = [model.generate(longest(seed, 3), params, priority=1) for seed in range(40, 50)]
        next(low[0])
        assert all(len(stream.token_ids) == 1 for stream in high + low[:22])
        assert all(stream.token_ids == [] for stream in low[22:])
        assert [len(list(stream)) for stream in low + high] == [2] + [3] * 49


def test_nobody_waits_for_the_prefix_of_one_that_does_not_run(small_steps: int, model: Model) -> None:
    """A prompt half computed, and then as many of its kind as a step takes, all of higher priority."""
    text = longest(5)
    params = replace(FOREVER, max_tokens=2)
    with model.generate(PROMPT, FOREVER) as company:
        low = model.generate(text, params, priority=-1)
        next(company)
        assert low.token_ids == []
        high = [model.generate([*text, token], params) for token in range(5, 45)]
        assert [len(list(stream)) for stream in [*high, low]] == [2] * 41


@on_both_backends
def test_a_prompt_that_can_never_fit_is_refused_at_once(path: Path, backend: str) -> None:
    with small(path, 2, device=backend) as model:
        with pytest.raises(KVMemoryError, match=r"65 tokens need 3 KV blocks, there are 2; .*kv_memory"):
            model.generate(longest(6, 65))
        assert len(list(model.generate(longest(6, 64), replace(FOREVER, max_tokens=1)))) == 1, "64 do fit"
        with pytest.raises(KVMemoryError):
            list(model.generate(longest(6, 60), FOREVER))
        assert len(list(model.generate(PROMPT, replace(FOREVER, max_tokens=9)))) == 9, "and the engine goes on"
        assert model.num_free_blocks == 2


@on_both_backends
def test_a_full_context_is_an_error_an_end_or_a_shift(path: Path, backend: str) -> None:
    with edgellm.load(path, device=backend, threads=2, context=64) as model:
        with pytest.raises(ContextLengthError):
            model.generate(longest(7, 60), replace(FOREVER, max_tokens=6))
        stopped = model.generate(longest(7, 60), replace(FOREVER, max_tokens=6, context_policy="stop"))
        assert len(list(stopped)) == 5 and stopped.finish_reason == "length"
        shifted = model.generate(longest(7, 60), replace(FOREVER, max_tokens=100, context_policy="shift"))
        assert len(list(shifted)) == 100 and shifted.finish_reason == "length"
        assert shifted.usage.num_dropped_tokens == 3 * 33  # 65 tokens become 32: after 5 tokens, 38 and 71
        assert shifted.usage.num_completion_tokens == 100


@on_both_backends
@pytest.mark.parametrize("keep", [0, 7, 1000])
def test_a_shifted_text_goes_on_like_a_fresh_request_on_it(path: Path, backend: str, keep: int) -> None:
    with edgellm.load(path, device=backend, threads=2, context=64) as model:
        params = SamplingParams(max_tokens=30, context_policy="shift", context_keep=keep, logit_bias={2: -1000.0})
        prompt = longest(8, 50)
        stream = model.generate(prompt, params)
        list(stream)
        whole = [*prompt, *stream.token_ids[:15]]  # 65 tokens: one too many
        kept = min(keep, 16)
        fresh = model.generate(whole[:kept] + whole[65 - 32 + kept :], replace(params, max_tokens=15))
        list(fresh)
        assert stream.usage.num_dropped_tokens == 33
        assert stream.token_ids[15:] == fresh.token_ids


@on_both_backends
def test_a_prompt_beyond_context_and_memory_is_shifted_first(path: Path, backend: str) -> None:
    with small(path, 2, context=64, device=backend) as model:
        text = longest(9, 300)
        stream = model.generate(text, SamplingParams(max_tokens=20, context_policy="shift"))
        fresh = model.generate(text[-32:], SamplingParams(max_tokens=20))
        assert [piece.token_id for piece in stream] == [piece.token_id for piece in fresh]
        assert stream.usage.num_dropped_tokens == 300 - 32


@on_both_backends
def test_the_prefix_cache_hears_exactly_what_was_computed(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more tokens than the text has: not where a stop text ends it within a draft that was right."""
    free, heard = PrefixCache.free, []

    def freeing(self: PrefixCache, sequence: object, tokens: list[int]) -> None:
        assert len(tokens) == sequence.length  # type: ignore[attr-defined]
        heard.append(len(tokens))
        free(self, sequence, tokens)  # type: ignore[arg-type]

    monkeypatch.setattr(PrefixCache, "free", freeing)
    text = model.detokenize([LETTER])
    for count in range(9, 20):
        stream = model.generate(PROMPT, replace(FOREVER, stop=(text * count,), speculation="on"))
        assert len(list(stream)) == count
        assert stream.usage.num_drafted_tokens > 0
    assert all(len(PROMPT) + count - 1 <= length for count, length in zip(range(9, 20), heard, strict=True))


def test_no_step_is_computed_but_for_an_answer(model: Model, steps: list[list[Rows]]) -> None:
    """What drafts cost is learned from the steps of answers: none is there to be measured."""
    prompt, params = [5, *[LETTER] * 6], replace(FOREVER, max_tokens=60)
    for speculation in ("auto", "on"):
        stream = model.generate(prompt, replace(params, speculation=speculation))
        list(stream)
        assert stream.usage.num_drafted_tokens > 0
        num_rows = sum(len(rows.tokens) for step in steps for rows in step)
        usage = stream.usage
        computed = usage.num_prompt_tokens - usage.num_cached_tokens + usage.num_completion_tokens - 1
        assert num_rows == computed + usage.num_drafted_tokens - usage.num_accepted_tokens
        steps.clear()


@on_both_backends
@pytest.mark.skipif(not HAS_CONSTRAINTS, reason="llguidance is not installed")
def test_a_constraint_that_fails_ends_its_own_request_only(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare, calls = Masks.prepare, iter(range(100))

    def failing(self: Masks, num_tokens: int, drafted: Sequence[int]) -> object:
        if next(calls) == 3:
            raise GrammarError("too much work; write it more simply")
        return prepare(self, num_tokens, drafted)

    other = model.generate(PROMPT, replace(FOREVER, max_tokens=12))
    bad = model.generate(PROMPT, SamplingParams(constraint=Regex("[a-z]{9}")))
    monkeypatch.setattr(Masks, "prepare", failing)
    assert len(list(other)) == 12, "whoever drives"
    with pytest.raises(GrammarError):
        list(bad)
    assert len(bad.token_ids) == 3


@on_both_backends
@pytest.mark.skipif(not HAS_CONSTRAINTS, reason="llguidance is not installed")
def test_timings_of_a_forced_beginning_are_of_its_computation(model: Model) -> None:
    stream: Stream = model.generate(PROMPT, SamplingParams(constraint=Regex("the on(a|b)cd")))
    assert stream.token_ids and stream.timings.first_token_ms is None
    list(stream)
    assert stream.text in ("the onacd", "the onbcd")
    assert stream.timings.first_token_ms and stream.timings.prefill_tokens_per_second


@on_both_backends
def test_timings_and_usage_count_what_was_done(model: Model) -> None:
    stream = model.generate(longest(10, 50), replace(FOREVER, max_tokens=30))
    list(stream)
    usage = stream.usage
    assert (usage.num_prompt_tokens, usage.num_completion_tokens, usage.num_dropped_tokens) == (50, 30, 0)
    assert stream.timings.decode_tokens_per_second is not None
