"""Whatever goes wrong for one leaves the others' texts as they are, nobody waiting and no memory lost."""

import gc
import itertools
import linecache
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

import edgellm
from edgellm import Model, SamplingParams
from edgellm.backends.base import Rows
from edgellm.backends.cpu.runner import CPURunner
from edgellm.engine import engine as engine_module
from edgellm.engine import request as request_module
from edgellm.engine.request import Piece, Request
from edgellm.engine.stream import Stream
from edgellm.errors import ClosedError, EdgeLLMError
from tests.edgellm.engine.requests import CONTEXT, Given, answer, answer_together, assert_equal, given, random_requests
from tests.tiny import make_tiny_gguf

PROMPT = [5, 80, 90, 100, 7]
FOREVER = SamplingParams(logit_bias={90: 1000.0})
ENDLESS = replace(FOREVER, context_policy="shift")
REQUESTS = [replace(asked, cancel_after=None) for asked in random_requests(60, seed=3) if not asked.params.constraint]
SOME = [asked for asked in REQUESTS if asked.params.max_tokens and asked.params.max_tokens > 8][:6]


class Failing:
    """Raises at the given call."""

    def __init__(self, function: Callable[..., Any], error: BaseException, call: int, *, behind: bool) -> None:
        self._function, self._error, self._behind = function, error, behind
        self._left = call

    def __get__(self, instance: object, owner: type) -> Callable[..., Any]:
        return lambda *arguments, **options: self(instance, *arguments, **options)

    def __call__(self, *arguments: object, **options: object) -> Any:
        self._left -= 1
        if self._left == 0 and not self._behind:
            raise self._error
        result = self._function(*arguments, **options)
        if self._left == 0:
            raise self._error
        return result


def read_in_turn(model: Model, trace: Callable[..., Any] | None = None) -> tuple[list[Given], list[BaseException]]:
    """SOME, piece by piece from one after the other; whose reading fails is read no further."""
    streams: list[tuple[Stream, list[Piece]]] = [(model.generate(asked.prompt, asked.params), []) for asked in SOME]
    errors: list[BaseException] = []
    todo = list(streams)
    while todo:
        for stream, pieces in list(todo):
            before = sys.gettrace()
            try:
                sys.settrace(before if trace is None else trace)
                piece = next(stream, None)
            except BaseException as error:
                assert stream._request.is_over, "whose reading fails is computed no further"
                errors.append(error)
                piece = None
            finally:
                sys.settrace(before)
            if piece is None:
                todo.remove((stream, pieces))
            else:
                pieces.append(piece)
    return [given(stream, pieces) for stream, pieces in streams], errors


def num_different(results: list[Given], expected: list[Given]) -> int:
    """How many answers are others; they must be beginnings of what was expected."""
    different = 0
    for mine, whole in zip(results, expected, strict=True):
        if mine != whole:
            different += 1
            is_cut = mine.finish_reason in ("cancelled", None)
            # Steps of others may have computed it to its end before its reader failed, who then left pieces unread
            assert is_cut or replace(mine, pieces=whole.pieces) == whole, mine
            assert mine.pieces == whole.pieces[: len(mine.pieces)]
    return different


@pytest.fixture
def expected(model: Model) -> list[Given]:
    return [answer(model, asked) for asked in SOME]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError(), EdgeLLMError("broken")], ids=repr)
@pytest.mark.parametrize("behind", [False, True], ids=["before", "behind"])
@pytest.mark.parametrize("call", [1, 2, 6])
def test_an_error_in_a_step_is_its_readers_alone(
    model: Model, expected: list[Given], error: BaseException, behind: bool, call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = model.num_free_blocks
    monkeypatch.setattr(CPURunner, "start", Failing(CPURunner.start, error, call, behind=behind))
    results, errors = read_in_turn(model)
    assert errors == [error]
    assert num_different(results, expected) == 1, "that of the reader who got the error"
    assert model.num_free_blocks == free


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError(), EdgeLLMError("broken")], ids=repr)
@pytest.mark.parametrize("behind", [False, True], ids=["before", "behind"])
@pytest.mark.parametrize("call", [1, 2, 7, 23])
def test_an_error_while_tokens_are_taken_ends_at_most_two(
    model: Model, expected: list[Given], error: BaseException, behind: bool, call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who drove, and whose token it was, which is not known to be whole."""
    free = model.num_free_blocks
    monkeypatch.setattr(Request, "take", Failing(Request.take, error, call, behind=behind))
    results, errors = read_in_turn(model)
    assert errors == [error]
    assert 1 <= num_different(results, expected) <= 2
    assert model.num_free_blocks == free


def test_an_answer_ends_behind_its_last_piece(model: Model) -> None:
    """Or its reader, in another thread, could find the end first and go."""

    class Pieces(deque[Piece]):
        def append(self, piece: Piece) -> None:
            assert stream.finish_reason is None
            super().append(piece)

    stream = model.generate(PROMPT, SamplingParams(max_tokens=5))
    stream._request.pieces = Pieces()
    assert len(list(stream)) == 5 and stream.finish_reason == "length"


class Interrupting:
    """Raises KeyboardInterrupt before the given line of the engine's code, of all that run or of those not seen yet."""

    FILES = (engine_module.__file__, request_module.__file__)
    # Where no code can be safe: what is interrupted there is the handling of an interrupt, or a lock half taken
    SPARED = ("next_piece", "cancel", "_release", "submit", "__init__", "num_free_blocks")

    def __init__(self, line: int, *, unseen: bool) -> None:
        self._left, self._unseen = line, unseen
        self._seen: set[tuple[CodeType, int]] = set()
        self.has_raised = False

    def __call__(self, frame: FrameType, event: str, argument: object) -> Any:
        code = frame.f_code
        return self._line if code.co_filename in self.FILES and code.co_name not in self.SPARED else None

    def _line(self, frame: FrameType, event: str, argument: object) -> Any:
        # Not where `with` lets go of a lock: the interpreter looks for signals behind calls, none of which is there
        if event == "line" and "with " not in linecache.getline(frame.f_code.co_filename, frame.f_lineno):
            place = frame.f_code, frame.f_lineno
            self._left -= not self._unseen or place not in self._seen
            self._seen.add(place)
            if self._left == 0 and not self.has_raised:
                self.has_raised = True
                raise KeyboardInterrupt
        return self._line


@pytest.mark.parametrize(("unseen", "step"), [(True, 1), (False, 53)], ids=["each once", "every 53rd"])
def test_an_interrupt_at_any_line_spoils_at_most_the_reader_and_one_other(
    model: Model, expected: list[Given], unseen: bool, step: int
) -> None:
    free = model.num_free_blocks
    for line in itertools.count(1, step):
        interrupting = Interrupting(line, unseen=unseen)
        results, errors = read_in_turn(model, interrupting)
        assert len(errors) == interrupting.has_raised
        assert num_different(results, expected) <= 2 * len(errors), line
        assert model.num_free_blocks == free, line
        model.check_integrity()
        if not interrupting.has_raised:
            break


def test_an_error_of_the_consumer_frees_the_memory(model: Model) -> None:
    free = model.num_free_blocks
    with pytest.raises(ZeroDivisionError), model.generate(PROMPT, FOREVER) as stream:
        for number, _ in enumerate(stream):
            1 / (3 - number)
    assert stream.finish_reason == "cancelled"
    assert model.num_free_blocks == free


def test_an_abandoned_stream_is_no_company_and_frees_its_memory(model: Model, steps: list[list[Rows]]) -> None:
    free = model.num_free_blocks
    abandoned, kept = model.generate(PROMPT, FOREVER), model.generate(PROMPT[1:], FOREVER)
    next(kept)
    circle: list[object] = [abandoned]
    circle.append(circle)
    del abandoned, circle
    gc.collect()
    next(kept)
    assert [len(step) for step in steps] == [2, 1]
    kept.close()
    assert model.num_free_blocks == free


@pytest.mark.parametrize("lock", ["engine", "session"])
def test_a_stream_may_be_collected_while_a_lock_is_held(model: Model, lock: str) -> None:
    """As the collector may do at any line."""
    free = model.num_free_blocks
    streams = [model.generate(PROMPT, FOREVER)]
    next(streams[0])
    held = model._driver._changed if lock == "engine" else model._input.session._lock

    def collect() -> None:
        with held:
            streams.clear()
            gc.collect()

    collector = threading.Thread(target=collect, daemon=True)
    collector.start()
    collector.join(10)
    assert not collector.is_alive(), "a deadlock"
    assert model.num_free_blocks == free


def test_two_models_at_once_in_two_threads(path: Path, model: Model, tmp_path: Path) -> None:
    with edgellm.load(make_tiny_gguf(tmp_path / "other.gguf", seed=1), threads=2, context=CONTEXT) as other:
        models, results = (model, other), {}
        expected = [[answer(each, asked) for asked in REQUESTS] for each in models]
        threads = [
            threading.Thread(target=lambda n=n: results.update({n: answer_together(models[n], REQUESTS, readers=2)}))
            for n in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert expected[0] != expected[1]
        for number in range(2):
            assert_equal(REQUESTS, results[number], expected[number])


def test_closing_a_model_that_three_threads_read_from_ends_them(path: Path) -> None:
    before = threading.active_count()
    for _ in range(10):
        model = edgellm.load(path, threads=3, context=CONTEXT)
        ends: list[str] = []
        has_begun = threading.Barrier(4)

        def read(model: Model = model, ends: list[str] = ends, has_begun: threading.Barrier = has_begun) -> None:
            stream = model.generate(PROMPT, ENDLESS)
            next(stream)
            has_begun.wait()
            try:
                for _ in stream:
                    pass
            except ClosedError as error:
                ends.append(str(error))

        readers = [threading.Thread(target=read, daemon=True) for _ in range(3)]
        for reader in readers:
            reader.start()
        has_begun.wait()
        closers = [threading.Thread(target=model.close, daemon=True) for _ in range(2)]
        for thread in closers:
            thread.start()
        for thread in closers + readers:
            thread.join(20)
            assert not thread.is_alive()
        assert len(ends) == 3 and all("load it again" in end for end in ends)
        assert threading.active_count() == before


def test_whoever_closes_second_returns_when_all_is_over(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the file would be unmapped under a step that still runs."""
    model = edgellm.load(path, threads=2, context=CONTEXT)
    in_step, go_on = threading.Event(), threading.Event()
    run = CPURunner.start

    def slow(*arguments: Any, **options: Any) -> Any:
        in_step.set()
        assert go_on.wait(20)
        return run(*arguments, **options)

    monkeypatch.setattr(CPURunner, "start", slow)
    reader = threading.Thread(target=lambda: next(model.generate(PROMPT, FOREVER)), daemon=True)
    closers = [threading.Thread(target=model.close, daemon=True) for _ in range(2)]
    reader.start()
    assert in_step.wait(20)
    for closer in closers:
        closer.start()
        closer.join(0.05)
    assert all(closer.is_alive() for closer in closers)
    go_on.set()
    for thread in (*closers, reader):
        thread.join(20)
        assert not thread.is_alive()


FORK = """
import os, signal, sys, threading
import edgellm
from edgellm import SamplingParams
from edgellm.errors import ClosedError

model = edgellm.load(sys.argv[1], threads=2, context=192)
endless = SamplingParams(logit_bias={90: 1000.0}, context_policy="shift")
stream, own = model.generate([5, 6, 7], endless), model.generate([8, 9], SamplingParams(max_tokens=20))
ended = threading.Event()
def read():
    for _ in stream:
        if ended.is_set():
            break
reader = threading.Thread(target=read, daemon=True)
reader.start()
next(own)
for _ in range(30):
    child = os.fork()
    if not child:
        signal.alarm(20)  # ends a child that waits for a lock of its parent's
        closed = 0
        for use in (
            lambda: next(stream), lambda: next(own), lambda: model.generate([5]), lambda: model.logits([5]),
            lambda: model.num_free_blocks,
        ):
            try:
                use()
            except ClosedError as error:
                closed += "forked" in str(error)
        model.close()
        os._exit(0 if closed == 5 else 1)
    assert os.waitpid(child, 0)[1] == 0
ended.set()
reader.join()
print(len(list(own)))
model.close()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_forked_child_is_told_so_and_the_parent_goes_on(path: Path, model: Model) -> None:
    expected = len(list(model.generate([8, 9], SamplingParams(max_tokens=20))))
    done = subprocess.run(
        [sys.executable, "-c", FORK, str(path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout.split()) == (0, [str(expected - 1)]), done.stderr
