"""A model with windows and recurrent states gives the same bits alone and in any company, in any memory, with drafts,
from kept states and after a restart.
"""

import itertools
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgellm
from edgellm import Model, Observation, Probe, SamplingParams
from edgellm.backends.cpu.runner import CPURunner
from edgellm.engine import model as model_module
from edgellm.engine.draft import DraftModel
from edgellm.errors import OptionError
from edgellm.families.network import Network
from edgellm.kernels.ops import KV_BLOCK
from edgellm.memory.kv import KVCache
from edgellm.memory.layout import StateLayout
from edgellm.memory.pool import Pool
from tests.edgellm.engine import test_robustness as robustness
from tests.edgellm.engine.conftest import Step, before_steps
from tests.edgellm.engine.requests import (
    CONTEXT,
    Asked,
    Given,
    answer,
    answer_together,
    assert_equal,
    random_requests,
)
from tests.edgellm.families.tiny_hybrid import WINDOW, make_hybrid_gguf
from tests.tiny import make_tiny_gguf

KINDS = ["conv linear", "window", "linear full", "window conv"]  # which leave out blocks, slots or windows


def without_shift(asked: Asked) -> Asked:
    if asked.params.context_policy == "shift":
        return replace(asked, params=replace(asked.params, context_policy="stop"))
    return asked


REQUESTS = [without_shift(asked) for asked in random_requests(1000, seed=5)]
FEW = REQUESTS[:100]  # for what is tried in many ways
# Without kernels a request takes half a second, so that as many as with them are for a patient person
NAIVE_REQUESTS = int(os.environ.get("EDGELLM_NAIVE_REQUESTS", "20"))
TEXT = [5 + (7 * at) % 250 for at in range(150)]
GREEDY = SamplingParams(max_tokens=12, speculation="off", logit_bias={2: -1e9})


@pytest.fixture(scope="session")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_hybrid_gguf(tmp_path_factory.mktemp("hybrid") / "tiny.gguf")


def answers_alone(path: Path, requests: list[Asked], **options: str) -> list[Given]:
    """One after the other, without drafts, by an engine that forgets what was before, and one thread."""
    answers = []
    with edgellm.load(path, threads=1, context=CONTEXT, **options) as model:
        for asked in requests:
            answers.append(answer(model, replace(asked, params=replace(asked.params, speculation="off"))))
            model.engine.prefixes.forget()
    return answers


@pytest.fixture(scope="module")
def alone(path: Path, _session_home: None) -> list[Given]:
    return answers_alone(path, REQUESTS)


def run_together(
    path: Path, requests: list[Asked], *, streams: int = 8, threads: int = 2, **options: str
) -> list[Given]:
    """With all memory free at the end."""
    with edgellm.load(path, context=CONTEXT, threads=threads, **options) as model:
        answers = answer_together(model, requests, streams=streams)
        model.check_integrity()
    return answers


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """What models load with: `rows` of a step, `blocks`, `places` in a window and `slots`."""
    chosen: dict[str, int] = {}

    def make(layout: StateLayout, **options: object) -> KVCache:
        places = [chosen.get("places", chosen["blocks"])] * len(layout.windows)
        return KVCache(layout, chosen["blocks"], num_places=places, num_slots=chosen.get("slots"))

    monkeypatch.setattr(model_module, "make_cache", make)
    monkeypatch.setattr(model_module, "step_rows", lambda nbytes: chosen["rows"])
    yield chosen


def test_a_thousand_requests_together_equal_each_alone(path: Path, alone: list[Given]) -> None:
    assert_equal(REQUESTS, run_together(path, REQUESTS, streams=14), alone)


def test_the_naive_backend_gives_the_same_alone_and_together(path: Path) -> None:
    for begin in range(0, NAIVE_REQUESTS, 20):
        requests = REQUESTS[begin : begin + 20]
        together = run_together(path, requests, device="naive")
        assert_equal(requests, together, answers_alone(path, requests, device="naive"))


def test_threads_do_not_change_a_bit(path: Path, alone: list[Given]) -> None:
    assert_equal(FEW, run_together(path, FEW, threads=3), alone[: len(FEW)])


@pytest.mark.parametrize("rows", [1, 7, 60])
def test_chunks_of_prompts_equal_the_whole(
    path: Path, alone: list[Given], rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_module, "step_rows", lambda nbytes: rows)
    requests = FEW[: 20 * rows]
    assert_equal(requests, run_together(path, requests, streams=14), alone[: len(requests)])


@pytest.mark.parametrize(
    "memory",
    [{"blocks": 7, "rows": 60}, {"blocks": 40, "rows": 20, "places": 5}, {"blocks": 40, "rows": 60, "slots": 2},
     {"blocks": 8, "rows": 20, "places": 6, "slots": 5}],
    ids=str,
)  # fmt: skip
def test_requests_that_take_each_others_memory_equal_each_alone(
    path: Path, alone: list[Given], sizes: dict[str, int], memory: dict[str, int]
) -> None:
    """Memory for hardly more than one of the 24 that want some: blocks, places in the window, or slots."""
    sizes.update(memory)
    assert_equal(FEW, run_together(path, FEW), alone[: len(FEW)])


@pytest.mark.parametrize("kinds", KINDS)
def test_any_mixture_of_layers_gives_the_same_together_and_alone(
    tmp_path: Path, kinds: str, sizes: dict[str, int]
) -> None:
    """In plenty of memory and in little."""
    path, requests = make_hybrid_gguf(tmp_path / "tiny.gguf", kinds=kinds, layers=2), FEW[:40]
    sizes.update({"blocks": 100, "rows": 192})
    expected = answers_alone(path, requests)
    assert_equal(requests, run_together(path, requests), expected)
    sizes.update({"blocks": 8, "rows": 20, "places": 6, "slots": 5})
    assert_equal(requests, run_together(path, requests), expected)


def test_drafts_change_no_text(path: Path, alone: list[Given], _session_home: None) -> None:
    """Those that are right and those that are not: behind a wrong token, what was right is computed again."""
    drafted = accepted = 0
    with edgellm.load(path, threads=2, context=CONTEXT) as model:
        for asked, expected in zip(FEW, alone, strict=False):
            stream = model.generate(asked.prompt, replace(asked.params, speculation="on"))
            assert list(stream) == expected.pieces, asked
            drafted, accepted = drafted + stream.usage.num_drafted_tokens, accepted + stream.usage.num_accepted_tokens
        model.check_integrity()
    assert accepted > 20 and drafted - accepted > 50


def test_what_is_computed_again_behind_a_wrong_draft_leaves_no_states(model: Model) -> None:
    """Each would drive out one that a prompt ends with."""
    bias = dict.fromkeys(range(10, 14), 100.0)
    prompt = [10, 11, 12, 13, 11, 12, 10, 13] * 2
    params = replace(GREEDY, max_tokens=40, temperature=30.0, seed=1, logit_bias=bias)
    kept = []
    for mode in ("on", "off"):  # the first learns nothing from the second
        stream = model.generate(prompt, replace(params, speculation=mode))  # type: ignore[arg-type]
        list(stream)
        assert mode == "off" or stream.usage.num_drafted_tokens > stream.usage.num_accepted_tokens
        kept.append(len(model.engine.prefixes._checkpoints))
        model.engine.prefixes.forget()
    assert kept[0] == kept[1]


def test_errors_in_a_step_are_the_readers_alone(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(robustness, "SOME", list(map(without_shift, robustness.SOME)))
    expected = [answer(model, asked) for asked in robustness.SOME]
    for call in (1, 2, 6):
        for behind in (False, True):
            error = KeyboardInterrupt()
            with monkeypatch.context() as patch:
                patch.setattr(CPURunner, "start", robustness.Failing(CPURunner.start, error, call, behind=behind))
                results, errors = robustness.read_in_turn(model)
            assert errors == [error] and robustness.num_different(results, expected) == 1
            model.check_integrity()


def test_an_interrupt_at_any_line_spoils_at_most_the_reader_and_one_other(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(robustness, "SOME", list(map(without_shift, robustness.SOME)))
    expected = [answer(model, asked) for asked in robustness.SOME]
    for line in itertools.count(1, 11):
        interrupting = robustness.Interrupting(line, unseen=True)
        results, errors = robustness.read_in_turn(model, interrupting)
        assert len(errors) == interrupting.has_raised
        assert robustness.num_different(results, expected) <= 2 * len(errors), line
        model.check_integrity()
        if not interrupting.has_raised:
            break


def test_closing_in_the_middle_frees_all_memory(model: Model) -> None:
    first, second = model.generate(TEXT, GREEDY), model.generate(TEXT[1:], GREEDY)
    for _ in range(3):
        next(first)
        next(second)
    first.close()
    assert len(list(second)) == 9
    model.check_integrity()


def test_shifting_is_refused(model: Model) -> None:
    with pytest.raises(OptionError, match=r"context_policy 'shift'.*recurrent.*toyhybrid"):
        model.generate(TEXT, SamplingParams(context_policy="shift"))


def test_the_same_prompt_again_costs_one_token_and_an_answer_is_gone_on_from(model: Model, steps: list[Step]) -> None:
    fresh = model.generate(TEXT, GREEDY)
    ids = [piece.token_id for piece in fresh]
    del steps[:]
    again = model.generate(TEXT, GREEDY)
    assert [piece.token_id for piece in again] == ids
    assert again.cache_report is not None and again.cache_report.reason == "hit"
    assert again.usage.num_cached_tokens == len(TEXT) - 1 and [len(rows.tokens) for rows in steps[0]] == [1]
    conversation = [*TEXT, *ids, 9, 10, 11]
    following = model.generate(conversation, GREEDY)
    text = [piece.token_id for piece in following]
    assert following.usage.num_cached_tokens == len(TEXT) + len(ids) - 1
    model.engine.prefixes.forget()
    assert [piece.token_id for piece in model.generate(conversation, GREEDY)] == text


def test_without_a_state_a_known_text_is_computed_again_and_the_report_says_so(model: Model) -> None:
    ids = [piece.token_id for piece in model.generate(TEXT, GREEDY)]
    while model.engine._cache.slots.evict():
        pass
    again = model.generate(TEXT, GREEDY)
    assert [piece.token_id for piece in again] == ids and again.usage.num_cached_tokens == 0
    assert again.cache_report is not None and again.cache_report.reason == "no state"
    assert "no state" in model.explain(again.cache_report)


def test_without_a_place_in_the_window_a_text_resumes_earlier(model: Model) -> None:
    long = model.generate(TEXT, GREEDY)
    ids = [piece.token_id for piece in long]
    [window] = model.engine._cache.windows
    while window.pool.evict():
        pass
    again = model.generate(TEXT, GREEDY)
    assert [piece.token_id for piece in again] == ids
    assert again.cache_report is not None and again.cache_report.reason == "no state"


def test_long_texts_resume_within_a_prompt_from_a_state_of_the_interval(model: Model) -> None:
    """Which take no more memory than the blocks between them."""
    interval = model.engine._cache.layout.state_interval
    assert interval < 100, "else this says nothing"
    expected = [[piece.token_id for piece in model.generate([*TEXT[:140], last], GREEDY)] for last in (3, 4)]
    model.engine.prefixes.forget()
    list(model.generate([*TEXT[:140], 3], GREEDY))
    other = model.generate([*TEXT[:120], *TEXT[:20]], GREEDY)
    list(other)
    assert other.usage.num_cached_tokens == 120 // interval * interval
    assert [piece.token_id for piece in model.generate([*TEXT[:140], 4], GREEDY)] == expected[1]


def test_answers_to_one_prompt_compute_it_once(model: Model, steps: list[Step]) -> None:
    params = replace(GREEDY, temperature=1.0, seed=3)
    streams = model.generate_n(TEXT, params, 4)
    ids = [[piece.token_id for piece in stream] for stream in streams]
    computed = sum(len(rows.tokens) for step in steps for rows in step)
    assert computed == len(TEXT) - 1 + 4 * params.max_tokens  # type: ignore[operator]
    for number in range(4):
        model.engine.prefixes.forget()
        assert [piece.token_id for piece in model.generate(TEXT, replace(params, seed=3 + number))] == ids[number]


def test_a_long_text_holds_no_more_of_a_window_than_it_shows(
    path: Path, sizes: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And where there are no more places than that, several texts still finish."""
    rows = 20
    most = -(-(WINDOW + rows) // KV_BLOCK) + 2
    sizes.update({"rows": rows, "blocks": 60})
    prompts = [[token + shift for token in TEXT] for shift in range(3)]
    held: list[int] = []
    pools: list[Pool] = []
    before_steps(monkeypatch, lambda batch: held.append(pools[-1].size - pools[-1].num_free))
    with edgellm.load(path, threads=1, context=CONTEXT) as model:
        pools.append(model.engine._cache.windows[0].pool)
        expected = [[piece.token_id for piece in model.generate(prompt, GREEDY)] for prompt in prompts]
    assert max(held) <= most < -(-len(TEXT) // KV_BLOCK) + 1
    sizes.update({"places": most})
    with edgellm.load(path, threads=1, context=CONTEXT) as model:
        pools.append(model.engine._cache.windows[0].pool)
        streams = [model.generate(prompt, GREEDY) for prompt in prompts]
        assert [[piece.token_id for piece in stream] for stream in streams] == expected
        model.check_integrity()


def test_a_restart_finds_blocks_and_states(path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "prefixes"
    with edgellm.load(path, threads=1, prefix_cache_dir=folder) as model:
        ids = [piece.token_id for piece in model.generate(TEXT, GREEDY)]
    with edgellm.load(path, threads=2, prefix_cache_dir=folder) as model:
        again = model.generate(TEXT, GREEDY)
        assert [piece.token_id for piece in again] == ids
        assert again.cache_report is not None
        assert (again.cache_report.from_disk, again.cache_report.reason) == (len(TEXT) - 1, "hit")
        model.check_integrity()


@pytest.mark.parametrize("params", [GREEDY, replace(GREEDY, temperature=1.0, seed=7)], ids=["greedy", "chance"])
@pytest.mark.parametrize("which", ["hybrid for itself", "another hybrid", "hybrid for llama", "llama for hybrid"])
def test_a_draft_model_never_changes_a_text(path: Path, tmp_path: Path, which: str, params: SamplingParams) -> None:
    llama = make_tiny_gguf(tmp_path / "llama.gguf", layers=1)
    model_path, draft = {
        "hybrid for itself": (path, path),
        "another hybrid": (path, make_hybrid_gguf(tmp_path / "other.gguf", seed=1)),
        "hybrid for llama": (llama, path),
        "llama for hybrid": (path, llama),
    }[which]
    params = replace(params, max_tokens=40, speculation="on")
    prompts = (TEXT[:70], TEXT[:3], TEXT[:70])
    with edgellm.load(model_path, threads=2) as model:
        expected = [[piece.token_id for piece in model.generate(prompt, params)] for prompt in prompts]
    with edgellm.load(model_path, threads=2, draft=draft) as model:
        for prompt, ids in zip(prompts, expected, strict=True):
            stream = model.generate(prompt, params)
            assert [piece.token_id for piece in stream] == ids
            assert stream.usage.num_drafted_tokens > 0
        model.check_integrity()


def test_a_hybrid_drafts_on_from_the_text_and_not_from_its_begin(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state before a draft is kept, to which it goes back."""
    computed: list[int] = []
    catch_up = DraftModel._catch_up

    def counting(self: DraftModel, *arguments: Any) -> int:
        computed.append(catch_up(self, *arguments))
        return computed[-1]

    monkeypatch.setattr(DraftModel, "_catch_up", counting)
    with edgellm.load(path, threads=2, draft=make_other(path)) as model:
        stream = model.generate(TEXT, replace(GREEDY, max_tokens=30, speculation="on"))
        list(stream)
        assert stream.usage.num_drafted_tokens > stream.usage.num_accepted_tokens
    assert computed[0] == len(TEXT) - 1 and max(computed[1:]) < 20


def make_other(path: Path) -> Path:
    return make_hybrid_gguf(path.with_name("other.gguf"), seed=1)


def test_probes_see_what_there_is(model: Model) -> None:
    seen: list[Observation] = []
    params = replace(GREEDY, logit_bias={})
    plain = [piece.token_id for piece in model.generate(TEXT, params)]
    model.engine.prefixes.forget()
    probe = Probe(seen.append, logits=True, hidden=range(5), attention=[(0, 1), (3, 0)], timings=True)
    assert [piece.token_id for piece in model.generate(TEXT, params, probe=probe)] == plain
    exact = model.logits([*TEXT, *plain])
    for one in seen:
        last = one.first_position + len(one.tokens) - 1
        assert one.hidden[4].shape == (len(one.tokens), 64)
        if one.logits is not None and len(one.logits):
            assert np.array_equal(one.logits[-1], exact[last])
            assert np.array_equal(model.unembed(one.hidden[4])[-1], exact[last])
        window, full = one.attention[0, 1][-1], one.attention[3, 0][-1]
        assert np.isclose(window.sum(), 1) and np.isclose(full.sum(), 1)
        assert not window[: max(0, last + 1 - WINDOW)].any()
    assert any("linear_attention" in one.seconds for one in seen)
    for layer in (1, 2):
        with pytest.raises(OptionError, match="no attention there"):
            model.generate(TEXT, GREEDY, probe=Probe(seen.append, attention=[(layer, 0)]))


def test_a_profile_and_logits_beside_a_request_leave_it_as_it_is(model: Model) -> None:
    expected = [piece.token_id for piece in model.generate(TEXT, GREEDY)]
    model.engine.prefixes.forget()
    logits = model.logits(TEXT)
    with model.generate(TEXT, GREEDY) as stream:
        ids = [next(stream).token_id for _ in range(3)]
        assert np.array_equal(model.logits(TEXT), logits)
        assert {"short_convolution", "linear_attention"} <= {kind.name for kind in model.profile(4, 100)}
        ids += [piece.token_id for piece in stream]
    assert ids == expected


def test_speculation_that_learns_its_costs_changes_nothing(model: Model) -> None:
    prompt = TEXT[:10] * 8
    expected = list(model.generate(prompt, replace(GREEDY, max_tokens=40)))
    assert list(model.generate(prompt, replace(GREEDY, max_tokens=40, speculation="auto"))) == expected
    assert model.engine.costs.is_known


def test_a_network_says_whether_it_is_recurrent(model: Model, tmp_path: Path) -> None:
    assert isinstance(model.network, Network) and model.network.is_recurrent
    with edgellm.load(make_hybrid_gguf(tmp_path / "tiny.gguf", kinds="window full")) as other:
        assert not other.network.is_recurrent
        list(other.generate(TEXT * 3, replace(GREEDY, context_policy="shift")))
