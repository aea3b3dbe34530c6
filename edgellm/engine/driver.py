"""Who runs the engine's steps: the readers themselves, or a thread.

ReaderDriver    The first reader that waits runs steps for all requests until its own token is there. A single reader
                pays nothing for requests that are not there, and an engine that nobody reads from is idle.
ThreadDriver    A thread runs steps while there are requests; for servers, whose readers are tasks of asyncio.
"""

import contextlib
import os
import threading
from abc import ABC, abstractmethod
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from edgellm.backends.base import Runner
from edgellm.engine.engine import Engine
from edgellm.engine.request import Piece, Request
from edgellm.errors import ClosedError, QueueFullError

if TYPE_CHECKING:
    import asyncio


LOOK_AGAIN = 0.5  # seconds after which a thread whose readers are all slow looks whether one has gone in silence


class Driver(ABC):
    """Lets one thread at a time drive an engine. For any number of threads."""

    def __init__(self, engine: Engine, *, max_requests: int | None) -> None:
        """More than `max_requests` at a time are refused."""
        self.engine = engine
        self._max_requests = max_requests
        # Not reentrant: a stream may be collected, and closed, while this very thread holds it
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._num_waiting = 0
        self._is_driven = self._is_closed = self._has_ended = False
        self._pid = os.getpid()

    @abstractmethod
    def next_piece(self, request: Request) -> Piece | None:
        """The next piece of a request; None at its end. Errors: what ended it."""

    @abstractmethod
    async def next_piece_async(self, request: Request) -> Piece | None:
        """As next_piece, for a task of asyncio."""

    def submit(self, request: Request) -> None:
        """Let it take part from the next step on. Never waits for a step.

        Errors: ClosedError; QueueFullError; KVMemoryError for what can never fit.
        """
        self.check_open()
        if self._max_requests is not None and self.engine.num_requests >= self._max_requests:
            raise QueueFullError(
                f"{self._max_requests} requests are under way or wait, as many as max_requests allows; "
                "try again later, or load the model with a higher max_requests"
            )
        self.engine.add(request)

    def cancel(self, request: Request) -> None:
        """End a request, at once or after the step that runs. Never waits, so that it may come from anywhere."""
        request.is_cancelled = True
        if os.getpid() == self._pid and self._lock.acquire(blocking=False):
            try:
                if not self._is_driven:
                    self.engine.end_over()
                    self._tell()
            finally:
                self._lock.release()

    @contextmanager
    def alone(self) -> Iterator[Runner]:
        """The runner for oneself, between two steps. Errors: ClosedError."""
        self._check_process()
        drives = False
        try:
            with self._lock:
                while self._is_driven:
                    self._wait()
                self._check_not_closed()
                self._is_driven = drives = True
            yield self.engine.runner
        finally:
            if drives:
                self._is_driven = False  # here, where no interrupt can come before
                self._release()

    def close(self) -> bool:
        """End all requests, with ClosedError for their readers. A step that runs is finished.

        Whoever closes at the same time returns when all is over; a forked child just leaves it. True for the one that
        ended all, which closes what the engine stands on.
        """
        if os.getpid() != self._pid:
            return False
        with self._lock:
            self._is_closed = True  # which ends who drives at the next step
            self._tell()
            while self._is_driven:
                self._wait()
            if self._has_ended:
                return False
            self._has_ended = True
            self.engine.end_over()  # which takes in those that came last
            for request in self.engine.requests:
                request.error = ClosedError("the model was closed; load it again to use it")
            self.engine.end_over()
            self._tell()
            self.engine.close()
            return True

    @property
    def num_free_blocks(self) -> int:
        self._check_process()
        with self._lock:
            if not self._is_driven:
                self.engine.end_over()
            return self.engine.num_free_blocks

    def check_integrity(self) -> None:
        """The books of the memory balance; with no request under way, nobody holds any."""
        self._check_process()
        with self._lock:
            if not self._is_driven:
                self.engine.end_over()
                self.engine.check_integrity()

    def check_open(self) -> None:
        """Errors: ClosedError."""
        self._check_process()
        self._check_not_closed()

    def _release(self) -> None:
        with self._lock:
            if not self._is_driven:  # by another already
                self.engine.end_over()
            self._tell()

    def _wait(self, seconds: float | None = None) -> None:
        """Until somebody tells that something changed, or so long. The caller holds the lock."""
        self._num_waiting += 1
        try:
            self._changed.wait(seconds)
        finally:
            self._num_waiting -= 1

    def _tell(self) -> None:
        if self._num_waiting:  # who decodes alone has nobody to tell, and every call costs
            self._changed.notify_all()

    def _check_not_closed(self) -> None:
        if self._is_closed:
            raise ClosedError("the model was closed; load it again to use it")

    def _check_process(self) -> None:
        """Before the lock is taken: another thread of the parent may have held it. Errors: ClosedError."""
        if os.getpid() != self._pid:
            raise ClosedError(
                "the process was forked, and threads do not come along; load the model again in the child"
            )


class ReaderDriver(Driver):
    """Whoever waits for a piece runs steps, for all requests; others who wait meanwhile find theirs."""

    def next_piece(self, request: Request) -> Piece | None:
        self._check_process()
        drives = False
        try:
            with self._lock:
                while self._is_driven and not request.pieces and not request.is_over:
                    self._wait()
                if request.pieces:
                    return request.pieces.popleft()
                if request.error is not None:
                    raise request.error
                if request.finish_reason is not None:
                    return None
                self._check_not_closed()
                self._is_driven = drives = True  # in one go: an interrupt may come after every call
            while not request.pieces and not request.is_over:
                self._step()
            if request.pieces:
                return request.pieces.popleft()
        finally:
            if drives:
                self._is_driven = False  # here, where no interrupt can come before
                self._release()
        return self.next_piece(request)

    async def next_piece_async(self, request: Request) -> Piece | None:
        """Waits in a thread of asyncio's pool."""
        import asyncio  # 20 ms, for those who have it already

        return await asyncio.to_thread(self.next_piece, request)

    def _step(self) -> None:
        with self._lock:
            self._tell()  # what the step before made
            self._check_not_closed()
        self.engine.step()


class ThreadDriver(Driver):
    """A thread runs steps while there are requests. It tells each loop of asyncio once a step what has come.

    Nobody else waits for a step: the lock is free while one runs.
    """

    def __init__(self, engine: Engine, *, max_requests: int | None) -> None:
        super().__init__(engine, max_requests=max_requests)
        self._thread: threading.Thread | None = None
        self._num_alone = 0  # who wait to have the runner for themselves
        self._tasks: deque[tuple[Request, asyncio.Future[None]]] = deque()  # that wait for their requests

    def submit(self, request: Request) -> None:
        super().submit(request)
        with self._lock:
            self._wake()

    def next_piece(self, request: Request) -> Piece | None:
        self._check_process()
        with self._lock:
            while not _has_come(request):
                self._check_not_closed()
                self._wait()
        return self._read(request)

    async def next_piece_async(self, request: Request) -> Piece | None:
        """Takes no lock: whoever makes a piece looks for tasks after that, and a task looks for a piece after it is
        among them.
        """
        import asyncio  # 20 ms, for those who have it already

        self._check_process()
        while not _has_come(request):
            told = asyncio.get_running_loop().create_future()
            self._tasks.append((request, told))
            self._check_not_closed()
            if not _has_come(request):
                await told
        return self._read(request)

    @contextmanager
    def alone(self) -> Iterator[Runner]:
        self._check_process()
        with self._lock:
            self._num_alone += 1
        try:
            with super().alone() as runner:
                yield runner
        finally:
            with self._lock:
                self._num_alone -= 1
                self._tell()

    def close(self) -> bool:
        has_ended = super().close()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread() and os.getpid() == self._pid:
            thread.join()
        return has_ended

    def _read(self, request: Request) -> Piece | None:
        if request.pieces:
            was_parked = request.is_parked
            piece = request.pieces.popleft()
            if was_parked and not request.is_parked:
                with self._lock:
                    self._wake()
            return piece
        if request.error is not None:
            raise request.error
        return None

    def _wake(self) -> None:
        """See to it that somebody looks for work. The caller holds the lock."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._drive, name="edgellm-engine", daemon=True)
            self._thread.start()
        self._tell()

    def _drive(self) -> None:
        while self._take_turn():
            try:
                self.engine.step()
            except BaseException as error:  # it would come again with the same requests
                for request in self.engine.requests:
                    if request.sequence is not None:
                        request.error = request.error or error

    def _take_turn(self) -> bool:
        """Wait until there is something to compute and nobody wants to be alone; False where nobody wants anything."""
        with self._lock:
            self._is_driven = False
            self._tell()
            while True:
                if self._num_alone == 0:
                    self.engine.end_over()
                    self._tell()
                    if self._is_closed or not self.engine.requests:
                        self._thread = None
                        return False
                    if not all(request.is_parked for request in self.engine.requests):
                        self._is_driven = True
                        return True
                self._wait(LOOK_AGAIN)

    def _tell(self) -> None:
        super()._tell()
        told: defaultdict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = defaultdict(list)
        for _ in range(len(self._tasks)):  # others may come meanwhile
            request, future = self._tasks.popleft()
            if _has_come(request):
                told[future.get_loop()].append(future)
            elif not future.done():  # its task was cancelled
                self._tasks.append((request, future))
        for loop, futures in told.items():
            with contextlib.suppress(RuntimeError):  # the loop was closed, so nobody waits there
                loop.call_soon_threadsafe(_resolve, futures)


def _has_come(request: Request) -> bool:
    return bool(request.pieces) or request.is_over


def _resolve(futures: "list[asyncio.Future[None]]") -> None:
    for future in futures:
        if not future.done():  # its task was cancelled meanwhile
            future.set_result(None)


DRIVERS = {"reader": ReaderDriver, "thread": ThreadDriver}
