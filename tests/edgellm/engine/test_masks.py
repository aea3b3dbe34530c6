"""Masks that are written beside the step are those written before it."""

import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray

from edgellm import Model, Probe, SamplingParams
from edgellm.backends.cpu.runner import CPURunner
from edgellm.engine import masks
from edgellm.engine.constrain import Matcher, Regex
from edgellm.errors import GrammarError
from tests.edgellm.engine.conftest import on_both_backends
from tests.edgellm.engine.requests import CONSTRAINTS, HAS_CONSTRAINTS, Asked, answer, answer_together, given

pytestmark = pytest.mark.skipif(not HAS_CONSTRAINTS, reason="llguidance is not installed")

LETTERS = Regex("[a-z]{20}")
ASKED = [
    Asked(
        [5, 80, 90, seed],
        SamplingParams(constraint=form, max_tokens=12, temperature=0.9, seed=seed, speculation="on"),
        0,
        None,
    )
    for seed, form in enumerate(CONSTRAINTS * 3, 3)
]


@pytest.fixture
def writers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the threads that wrote a mask from now on, all of them beside the step."""
    names: list[str] = []
    before_masks(monkeypatch, lambda: names.append(threading.current_thread().name))
    monkeypatch.setattr(masks, "HANDOVER", 0.0)
    return names


@pytest.fixture
def model(model: Model) -> Model:
    """One whose threads leave a processor, as it were."""
    model._input._masks_beside_steps = True
    return model


def before_masks(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    fill_mask = Matcher.fill_mask

    def filling(self: Matcher, mask: NDArray[np.int32]) -> None:
        act()
        fill_mask(self, mask)

    monkeypatch.setattr(Matcher, "fill_mask", filling)


def test_cheap_masks_are_written_by_the_reader_s_own_thread(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    names: set[str] = set()
    before_masks(monkeypatch, lambda: names.add(threading.current_thread().name))
    monkeypatch.setattr(masks, "HANDOVER", 10.0)
    list(model.generate([5, 80], SamplingParams(constraint=LETTERS)))
    assert names == {threading.current_thread().name}


def test_so_are_all_where_no_processor_is_left(model: Model, writers: list[str]) -> None:
    model._input._masks_beside_steps = False
    list(model.generate([5, 80], SamplingParams(constraint=LETTERS)))
    assert set(writers) == {threading.current_thread().name}


@on_both_backends
def test_answers_are_the_same_alone_and_together(model: Model, writers: list[str]) -> None:
    beside = [answer(model, asked) for asked in ASKED]
    together = answer_together(model, ASKED)
    assert writers and all(name.startswith("edgellm-masks") for name in writers)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masks, "HANDOVER", 10.0)
        assert beside == together == [answer(model, asked) for asked in ASKED]


def test_an_error_beside_the_step_ends_its_own_request_only(
    model: Model, writers: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        if len(bad.token_ids) == 3:
            raise GrammarError("too much work; write it more simply")

    before_masks(monkeypatch, fail)
    other = model.generate([5, 80, 90], SamplingParams(max_tokens=12, logit_bias={90: 1000.0}))
    bad = model.generate([5, 80], SamplingParams(constraint=LETTERS))
    assert len(list(other)) == 12, "whoever drives"
    with pytest.raises(GrammarError):
        list(bad)
    assert len(bad.token_ids) == 3


@pytest.mark.parametrize("behind", [False, True], ids=["before", "behind"])
def test_behind_an_interrupted_step_masks_are_written_anew(
    model: Model, writers: list[str], behind: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = SamplingParams(constraint=LETTERS, temperature=1.0, seed=1, speculation="off")
    alone = model.generate([5, 80, 90], params)
    list(alone)
    run, calls = CPURunner.start, iter(range(100))

    def interrupted(self: CPURunner, *args: object, **options: object) -> None:
        broken = next(calls) == 4
        if behind or not broken:
            run(self, *args, **options)  # type: ignore[arg-type]
        if broken:
            raise KeyboardInterrupt

    driver, stream = model.generate([7, 8], SamplingParams(max_tokens=50)), model.generate([5, 80, 90], params)
    monkeypatch.setattr(CPURunner, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(driver)
    list(stream)
    assert given(stream, []) == given(alone, [])


def test_a_matcher_is_never_in_two_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    inside, begun, go_on = [], threading.Event(), threading.Event()

    class Slow:
        def fill_mask(self, mask: NDArray[np.int32]) -> None:
            inside.append(1)
            begun.set()
            assert go_on.wait(20)
            assert len(inside) == 1
            inside.clear()

        def rollback(self, count: int) -> None:
            pass

    monkeypatch.setattr(masks, "HANDOVER", 0.0)
    its = masks.Masks(Slow(), 100, beside=True)  # type: ignore[arg-type]
    with ThreadPoolExecutor(2) as pool:
        its.prepare(0, [])
        assert its.start(pool) and begun.wait(20)
        monkeypatch.setattr(masks, "HANDOVER", 10.0)
        again = pool.submit(its.prepare, 0, [])  # as behind an interrupted step
        with pytest.raises(TimeoutError):
            again.result(0.05)
        go_on.set()
        assert again.result(20).shape == (1, 4)


def test_a_watched_step_has_its_masks_too_and_closing_ends_their_thread(
    model: Model, writers: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before_masks(monkeypatch, lambda: time.sleep(0.005))  # longer than the step takes
    stream = model.generate([5, 80], SamplingParams(constraint=LETTERS), probe=Probe(lambda seen: None, hidden=[0]))
    list(stream)
    assert re.fullmatch("[a-z]{20}", stream.text)
    assert any(thread.name.startswith("edgellm-masks") for thread in threading.enumerate())
    model.close()
    assert not any(thread.name.startswith("edgellm-masks") for thread in threading.enumerate())
