"""edgellm chat through a pipe: each line is answered in the light of those before it."""

import json
import signal
from pathlib import Path

import pytest

from edgellm import Model, Piece, SamplingParams, Stream
from tests.apps.conftest import Run

N = ("-n", "12")


def say(model: Model, *lines: str, system: str | None = None, max_tokens: int = 12) -> list[dict[str, str]]:
    """The conversation as the Python API has it."""
    messages = [] if system is None else [{"role": "system", "content": system}]
    for line in lines:
        messages.append({"role": "user", "content": line})
        stream = model.chat(messages, SamplingParams(max_tokens=max_tokens))
        messages.append({"role": "assistant", "content": "".join(piece.text for piece in stream)})
    return messages


def answers(messages: list[dict[str, str]]) -> str:
    return "".join(message["content"] + "\n" for message in messages if message["role"] == "assistant")


def test_answers_know_what_was_said(run: Run, tiny: str, tiny_model: Model) -> None:
    found = run("chat", tiny, *N, stdin="Hello\n\nWer bist du? Ä\nAnd now?\n".encode())
    assert (found.code, found.err) == (0, "")
    assert found.out == answers(say(tiny_model, "Hello", "Wer bist du? Ä", "And now?"))


def test_reset_forgets_and_keeps_the_system_text(run: Run, tiny: str, tiny_model: Model, tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    found = run("chat", tiny, *N, "--system", "Be kind", stdin=f"One\n/reset\nTwo\n/save {path}\n".encode())
    expected = say(tiny_model, "Two", system="Be kind")
    assert found.out == answers(say(tiny_model, "One", system="Be kind") + expected)
    assert json.loads(path.read_text("utf-8"))["messages"] == expected


def test_system_sets_and_takes_away(run: Run, tiny: str, tiny_model: Model, tmp_path: Path) -> None:
    first, second = tmp_path / "1.json", tmp_path / "2.json"
    lines = f"/system Be brief\nOne\n/save {first}\n/reset\n/system\nOne\n/save {second}\n"
    assert run("chat", tiny, *N, stdin=lines.encode()).code == 0
    assert json.loads(first.read_text("utf-8"))["messages"] == say(tiny_model, "One", system="Be brief")
    assert json.loads(second.read_text("utf-8"))["messages"] == say(tiny_model, "One")


def test_save_writes_and_never_over_a_file(run: Run, tiny: str, tiny_model: Model, tmp_path: Path) -> None:
    path = tmp_path / "my talk.json"
    found = run("chat", tiny, *N, "--system", "Sü", stdin=f"One\n/save {path}\n/save {path}\n/save\n".encode())
    assert json.loads(path.read_text("utf-8"))["messages"] == say(tiny_model, "One", system="Sü")
    assert found.code == 2
    assert [line.rpartition(";")[0] for line in found.err.splitlines()] == [f"edgellm: {path} is there already", ""]
    assert "/save FILE" in found.err


def test_exit_ends_it(run: Run, tiny: str, tiny_model: Model) -> None:
    assert run("chat", tiny, *N, stdin=b"One\n/exit\nTwo\n").out == answers(say(tiny_model, "One"))


def test_a_path_is_no_command_and_a_wrong_command_is_told(run: Run, tiny: str, tiny_model: Model) -> None:
    found = run("chat", tiny, *N, stdin=b"/etc/passwd holds what?\n/restart\n")
    assert found.out == answers(say(tiny_model, "/etc/passwd holds what?"))
    assert found.code == 2 and "/restart" in found.err and "/help" in found.err


def test_a_line_too_long_is_refused_and_the_conversation_goes_on(run: Run, tiny: str, tiny_model: Model) -> None:
    lines = f"One\n{'x' * 300}\nTwo\n".encode()
    found = run("chat", tiny, *N, "--context", "200", stdin=lines)
    assert found.out == answers(say(tiny_model, "One", "Two"))
    assert found.code == 2
    assert "the context 200" in found.err and "/reset" in found.err and found.err.count("\n") == 1


def test_a_conversation_that_outgrows_the_context(run: Run, tiny: str, tiny_model: Model) -> None:
    never = ("--logit-bias", "0=-1000", "--logit-bias", "2=-1000")
    found = run("chat", tiny, "--context", "80", *never, stdin=b"One\nTwo\n/reset\nOne\n")
    first, second = found.out.splitlines()[0], found.out.splitlines()[-1]
    assert first == second != ""
    assert found.code == 2 and "/reset" in found.err


def test_interrupt_in_a_pipe_ends_it(run: Run, tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Stream.__next__

    def next_with_interrupt(stream: Stream) -> Piece:
        signal.raise_signal(signal.SIGINT)
        return step(stream)

    monkeypatch.setattr(Stream, "__next__", next_with_interrupt)
    found = run("chat", tiny, *N, stdin=b"One\nTwo\n")
    assert (found.code, found.out) == (130, "\n")


def test_lines_that_are_not_utf8(run: Run, tiny: str) -> None:
    found = run("chat", tiny, *N, stdin=b"One\n\xff\n")
    assert found.code == 2 and "UTF-8" in found.err


def test_the_default_model_is_the_one_that_pull_gets(run: Run) -> None:
    found = run("chat", stdin=b"Hi\n")
    assert found.code == 2
    assert "smollm2-135m-instruct" in found.err and "edgellm pull" in found.err


def test_timings_follow_every_answer(run: Run, tiny: str) -> None:
    found = run("chat", tiny, *N, "--timings", stdin=b"One\nTwo\n")
    assert found.code == 0 and found.err.count("decode") == 2
