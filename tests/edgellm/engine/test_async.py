"""Answers in asyncio programs."""

import asyncio
import contextlib
from dataclasses import replace

import pytest

import edgellm
from edgellm import Model, SamplingParams
from edgellm.errors import ClosedError
from tests.edgellm.engine.requests import CONTEXT, Asked, answer, given, random_requests

PROMPT = [5, 80, 90, 100, 7]
FOREVER = SamplingParams(logit_bias={90: 1000.0})


def test_async_for_gives_what_for_gives(model: Model) -> None:
    params = SamplingParams(max_tokens=20, temperature=1.0, seed=4)

    async def read() -> list[int]:
        return [piece.token_id async for piece in model.generate(PROMPT, params)]

    assert asyncio.run(read()) == [piece.token_id for piece in model.generate(PROMPT, params)]


def test_more_streams_at_once_than_threads_to_wait_in(model: Model) -> None:
    requests = random_requests(60, seed=2)
    expected = [answer(model, asked) for asked in requests]

    async def read(asked: Asked) -> object:
        stream = model.generate(asked.prompt, asked.params, priority=asked.priority)
        return given(stream, [piece async for piece in stream])

    async def read_all() -> list[object]:
        return await asyncio.gather(*map(read, requests))

    assert asyncio.run(read_all()) == expected


def test_cancelling_a_task_ends_its_answer_and_no_other(model: Model) -> None:
    free = model.num_free_blocks
    params = replace(FOREVER, max_tokens=100)

    async def run() -> None:
        streams = [model.generate([5 + number, *PROMPT], params) for number in range(3)]

        async def read(number: int) -> int:
            return len([piece async for piece in streams[number]])

        tasks = [asyncio.create_task(read(number)) for number in range(3)]
        while len(streams[1].token_ids) < 5:
            await asyncio.sleep(0.001)
        tasks[1].cancel()
        with pytest.raises(asyncio.CancelledError):
            await tasks[1]
        assert [await tasks[0], await tasks[2]] == [100, 100]
        assert streams[1].finish_reason == "cancelled" and len(streams[1].token_ids) < 100

    asyncio.run(run())
    assert model.num_free_blocks == free


def test_a_timeout_frees_the_memory(model: Model) -> None:
    free = model.num_free_blocks

    async def run() -> None:
        stream = model.generate(PROMPT, replace(FOREVER, context_policy="shift"))  # without end
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                async for _ in stream:
                    pass
        assert stream.usage.num_completion_tokens > 0

    asyncio.run(run())
    assert model.num_free_blocks == free


def test_the_loop_goes_on_while_an_answer_is_computed(model: Model) -> None:
    async def run() -> int:
        beats, done = 0, asyncio.Event()

        async def read() -> None:
            async for _ in model.generate(PROMPT, replace(FOREVER, max_tokens=100)):
                pass
            done.set()

        task = asyncio.create_task(read())
        while not done.is_set():
            beats += 1
            await asyncio.sleep(0)
        await task
        return beats

    assert asyncio.run(run()) > 100


def test_breaking_out_of_the_loop_and_closing_ends_it(model: Model) -> None:
    async def run() -> None:
        with model.generate(PROMPT, FOREVER) as stream:
            async for _ in stream:
                break
        assert stream.finish_reason == "cancelled"
        assert [piece async for piece in stream] == []

    asyncio.run(run())


def test_a_model_closed_meanwhile_is_an_error_for_every_task(model: Model) -> None:
    with edgellm.load(model.packed.path, threads=2, context=CONTEXT) as other:

        async def read() -> None:
            async for _ in other.generate(PROMPT, replace(FOREVER, context_policy="shift")):
                pass

        async def run() -> list[object]:
            tasks = [asyncio.create_task(read()) for _ in range(4)]
            await asyncio.sleep(0.05)
            await asyncio.to_thread(other.close)
            with contextlib.suppress(TimeoutError):
                return await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 20)
            return []

        results = asyncio.run(run())
    assert len(results) == 4 and all(isinstance(result, ClosedError) for result in results)
