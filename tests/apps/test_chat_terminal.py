"""edgellm chat at a terminal: Ctrl-C stops the answer, then clears the line, and twice leaves."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.tiny import make_tiny_gguf

termios = pytest.importorskip("termios", reason="pseudo-terminals are a thing of Unix")

SECONDS = 30.0
NEVER_ENDS = ["--logit-bias", "0=-1000", "--logit-bias", "2=-1000"]
LAUNCH = [sys.executable, "-c", "import sys; from edgellm.apps.cli import main; sys.exit(main())"]
CTRL_C, CTRL_D = "\x03", "\x04"


class Talk:
    """A chat in a pseudo-terminal of its own."""

    def __init__(self, model: Path, *options: str) -> None:
        self._master, slave = os.openpty()
        environment = {**os.environ, "TERM": "dumb", "PROMPT_TOOLKIT_NO_CPR": "1"}
        command = [*LAUNCH, "chat", str(model), *options]
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True
        )
        os.close(slave)
        os.set_blocking(self._master, False)
        self.screen = ""

    def type(self, text: str) -> None:
        """Once keys are read: the prompt of a dumb terminal comes earlier, and until then Ctrl-C is lost."""
        self.wait_until(lambda screen: not termios.tcgetattr(self._master)[3] & termios.ISIG)
        os.write(self._master, text.encode())

    def wait_for(self, text: str) -> None:
        """Wait until a text has come since the last wait."""
        self.wait_until(lambda screen: text in screen)

    def wait_until(self, enough: Callable[[str], bool]) -> None:
        end = time.monotonic() + SECONDS
        while not enough(self.screen):
            assert time.monotonic() < end, f"not in time: {self.screen[-2000:]!r}"
            assert self.process.poll() is None or self._read(), f"it ended: {self.screen[-2000:]!r}"
            self._read()
            time.sleep(0.01)
        self.screen = ""

    def _read(self) -> bool:
        try:
            data = os.read(self._master, 1 << 16)
        except OSError:  # nothing there, or the other side is closed
            return False
        self.screen += data.decode(errors="replace")
        return bool(data)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)


@pytest.fixture
def talk(home: Path, tmp_path: Path) -> Iterator[Talk]:
    gguf = make_tiny_gguf(tmp_path / "long.gguf", context=1 << 20)
    talk = Talk(gguf, "--context", str(1 << 18), *NEVER_ENDS)
    yield talk
    talk.close()


def interrupt_an_answer(talk: Talk) -> None:
    """Ask something, and Ctrl-C while the answer, which is very long, is streaming."""
    talk.wait_for("> ")
    talk.type("Hello\r")
    talk.wait_until(lambda screen: len(screen) > 200)
    talk.process.send_signal(signal.SIGINT)
    talk.wait_for("\n> ")


def test_ctrl_c_stops_the_answer_and_not_the_program(talk: Talk) -> None:
    interrupt_an_answer(talk)
    talk.type("half a li" + CTRL_C)
    talk.wait_for("Ctrl-C again")
    talk.type("/help\r")  # something else came between: the count of Ctrl-C starts anew
    talk.wait_for("/reset  ")
    talk.type(CTRL_C)
    talk.wait_for("Ctrl-C again")
    assert talk.process.poll() is None
    talk.type(CTRL_C)
    assert talk.process.wait(SECONDS) == 0


def test_ctrl_d_leaves(talk: Talk) -> None:
    talk.wait_for("> ")
    talk.type(CTRL_D)
    assert talk.process.wait(SECONDS) == 0


def test_a_chat_that_waits_uses_no_processor(talk: Talk) -> None:
    interrupt_an_answer(talk)
    time.sleep(0.2)
    before = processor_seconds(talk)
    time.sleep(1.0)
    assert processor_seconds(talk) - before < 0.05


def processor_seconds(talk: Talk) -> float:
    times = psutil.Process(talk.process.pid).cpu_times()
    return times.user + times.system
