"""A thread that drives: the same answers as from readers, for any number of tasks, and nobody waits for a step."""

import asyncio
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import edgellm
from edgellm import Model, SamplingParams, Status
from edgellm.backends.base import Rows
from edgellm.backends.cpu.runner import CPURunner
from edgellm.engine import model as model_module
from edgellm.engine.driver import ThreadDriver
from edgellm.errors import ClosedError, OptionError, QueueFullError
from tests.edgellm.engine.conftest import before_steps
from tests.edgellm.engine.requests import CONTEXT, Given, answer, answer_together, assert_equal, given, random_requests

PROMPT = [5, 80, 90, 100, 7]
LETTER = 90
FOREVER = SamplingParams(logit_bias={LETTER: 1000.0}, speculation="off")
ENDLESS = replace(FOREVER, context_policy="shift")
REQUESTS = [replace(asked, cancel_after=None) for asked in random_requests(60, seed=8)]


@pytest.fixture
def threaded(path: Path, _session_home: None) -> Iterator[Model]:
    with edgellm.load(path, threads=2, context=CONTEXT, driver="thread") as model:
        free = model.num_free_blocks
        yield model
        wait_until_idle(model)
        assert model.num_free_blocks == free, "somebody still holds memory"
        model.check_integrity()


def engine_threads() -> int:
    return sum(thread.name == "edgellm-engine" for thread in threading.enumerate())


def wait_until_idle(model: Model) -> None:
    end = time.monotonic() + 20
    while engine_threads():
        assert time.monotonic() < end, "the thread goes on without a request"
        time.sleep(0.001)
    assert isinstance(model._driver, ThreadDriver)


def test_answers_are_those_of_readers(model: Model, threaded: Model) -> None:
    expected = [answer(model, asked) for asked in REQUESTS]
    assert_equal(REQUESTS, [answer(threaded, asked) for asked in REQUESTS], expected)
    assert_equal(REQUESTS, answer_together(threaded, REQUESTS, readers=4), expected)


def test_many_tasks_get_the_answers_of_readers(model: Model, threaded: Model) -> None:
    expected = [answer(model, asked) for asked in REQUESTS]

    async def read(number: int) -> Given:
        stream = threaded.generate(REQUESTS[number].prompt, REQUESTS[number].params)
        return given(stream, [piece async for piece in stream])

    async def read_all() -> list[Given]:
        return await asyncio.gather(*map(read, range(len(REQUESTS))))

    assert_equal(REQUESTS, asyncio.run(read_all()), expected)


def test_there_is_a_thread_while_there_are_requests(threaded: Model) -> None:
    assert engine_threads() == 0
    stream = threaded.generate(PROMPT, ENDLESS)
    next(stream)
    assert engine_threads() == 1
    stream.close()
    wait_until_idle(threaded)
    assert len(list(threaded.generate(PROMPT, replace(FOREVER, max_tokens=5)))) == 5


def test_a_step_tells_each_loop_once(threaded: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many of its tasks it has something for."""
    steps: list[int] = []
    before_steps(monkeypatch, lambda batch: steps.append(len(batch)))
    told = 0

    async def read_all() -> None:
        nonlocal told
        loop = asyncio.get_running_loop()
        tell = loop.call_soon_threadsafe

        def telling(*arguments: object, **options: object) -> object:
            nonlocal told
            told += 1
            return tell(*arguments, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(loop, "call_soon_threadsafe", telling)
        params = replace(FOREVER, max_tokens=30)
        streams = [threaded.generate([*PROMPT, number], params) for number in range(20)]
        answers = await asyncio.gather(*(stream.result_async() for stream in streams))
        assert all(len(found.token_ids) == 30 for found in answers)

    asyncio.run(read_all())
    assert told <= len(steps) + 1
    assert len(steps) < 60


def test_the_loop_goes_on_while_a_step_runs(threaded: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    before_steps(monkeypatch, lambda batch: time.sleep(0.2))
    worst = 0.0

    async def watch_clock(task: "asyncio.Task[object]") -> None:
        nonlocal worst
        while not task.done():
            begin = time.monotonic()
            await asyncio.sleep(0)
            stream = threaded.generate(PROMPT, replace(FOREVER, max_tokens=1))  # is taken in and given up meanwhile
            stream.close()
            worst = max(worst, time.monotonic() - begin)
            await asyncio.sleep(0.005)

    async def main() -> None:
        stream = threaded.generate(PROMPT, replace(FOREVER, max_tokens=4))
        task = asyncio.ensure_future(stream.result_async())
        await watch_clock(task)
        assert len(task.result().token_ids) == 4

    asyncio.run(main())
    assert worst < 0.1, "half of a step"


def test_a_cancelled_task_frees_its_memory(threaded: Model) -> None:
    async def main() -> None:
        stream = threaded.generate(PROMPT, ENDLESS)
        task = asyncio.ensure_future(stream.result_async())
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        wait_until_idle(threaded)
        assert stream.status is Status.CANCELLED

    asyncio.run(main())


@pytest.mark.parametrize("driver", ["reader", "thread"])
def test_who_reads_slowly_is_parked_and_the_others_go_on(
    path: Path, driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_module, "MAX_UNREAD", 10)
    with edgellm.load(path, threads=2, context=CONTEXT, driver=driver) as model:
        slow, fast = model.generate(PROMPT, ENDLESS), model.generate(PROMPT[1:], replace(FOREVER, max_tokens=100))
        next(slow)
        assert len(list(fast)) == 100
        assert len(slow.token_ids) <= 11, "no more than may lie unread"
        text = [next(slow).token_id for _ in range(50)]
        assert text == [LETTER] * 50, "and it goes on when it is read"
        slow.close()


def test_a_parked_request_that_nobody_holds_any_more_ends(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_module, "MAX_UNREAD", 10)
    with edgellm.load(path, threads=1, context=CONTEXT, driver="thread") as model:
        stream = model.generate(PROMPT, ENDLESS)
        while len(stream.token_ids) < 10:
            time.sleep(0.001)
        del stream
        wait_until_idle(model)


def test_too_many_requests_are_refused(path: Path) -> None:
    with edgellm.load(path, threads=1, context=CONTEXT, driver="thread", max_requests=3) as model:
        streams = [model.generate(PROMPT, ENDLESS) for _ in range(3)]
        with pytest.raises(QueueFullError, match=r"3 requests are under way.*max_requests"):
            model.generate(PROMPT, ENDLESS)
        streams[0].close()
        deadline = time.monotonic() + 20
        while True:
            try:
                streams.append(model.generate(PROMPT, replace(FOREVER, max_tokens=2)))
                break
            except QueueFullError:
                assert time.monotonic() < deadline
        assert len(list(streams[-1])) == 2
        for stream in streams:
            stream.close()
    with pytest.raises(OptionError, match=r"max_requests 0"):
        edgellm.load(path, max_requests=0)


def test_logits_between_steps_and_many_at_once(threaded: Model, model: Model) -> None:
    expected = model.logits(PROMPT)
    stream = threaded.generate(PROMPT, ENDLESS)
    next(stream)
    for _ in range(20):
        assert (threaded.logits(PROMPT) == expected).all()
    before = len(stream.token_ids)
    for _ in range(3):
        next(stream)
    assert len(stream.token_ids) > before or before > 3
    stream.close()


def test_an_error_in_a_step_ends_those_that_were_in_it(threaded: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    run, calls = CPURunner.start, iter(range(1000))

    def failing(self: CPURunner, batch: list[Rows], **options: object) -> None:
        if next(calls) == 3:
            raise MemoryError
        run(self, batch, **options)  # type: ignore[arg-type]

    stream = threaded.generate(PROMPT, ENDLESS)
    monkeypatch.setattr(CPURunner, "start", failing)
    with pytest.raises(MemoryError):
        list(stream)
    assert stream.status is Status.FAILED
    monkeypatch.undo()
    assert len(list(threaded.generate(PROMPT, replace(FOREVER, max_tokens=5)))) == 5


def test_closing_ends_readers_and_tasks(path: Path) -> None:
    model = edgellm.load(path, threads=2, context=CONTEXT, driver="thread")
    ends: list[str] = []

    def read() -> None:
        try:
            list(model.generate(PROMPT, ENDLESS))
        except ClosedError as error:
            ends.append(str(error))

    async def read_async() -> None:
        try:
            await model.generate(PROMPT, ENDLESS).result_async()
        except ClosedError as error:
            ends.append(str(error))

    readers = [threading.Thread(target=how, daemon=True) for how in (read, lambda: asyncio.run(read_async()))]
    for reader in readers:
        reader.start()
    while len(model.engine.requests) < 2:
        time.sleep(0.001)
    model.close()
    for reader in readers:
        reader.join(20)
        assert not reader.is_alive()
    assert len(ends) == 2 and all("load it again" in end for end in ends)
    assert engine_threads() == 0


def test_the_time_in_the_queue_is_known(path: Path, model: Model) -> None:
    first = model.generate(PROMPT, replace(FOREVER, max_tokens=2))
    assert (first.status, first.timings.queue_ms) == (Status.WAITING, None)
    time.sleep(0.02)
    next(first)
    assert first.status is Status.RUNNING
    assert 20 <= (first.timings.queue_ms or 0) < 5000
    list(first)
    assert first.status is Status.FINISHED


def test_an_unknown_driver_is_refused(path: Path) -> None:
    with pytest.raises(OptionError, match=r"driver 'bus' must be one of: reader, thread"):
        edgellm.load(path, driver="bus")
