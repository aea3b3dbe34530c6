"""What happens to each line of a chat: an answer, or a command."""

import json
import re
import sys
from pathlib import Path

from edgellm import Model, SamplingParams
from edgellm.apps.summary import filled_context, summary
from edgellm.apps.terminal import INTERRUPTED, interrupt_closes, note, one_line, write_text
from edgellm.errors import ContextLengthError, EdgeLLMError

HELP = """\
/reset         forget the conversation, keep the system text
/system TEXT   say how the model should answer; without TEXT, no longer
/save FILE     write the conversation to a new JSON file
/help          this list
/exit          leave; so does Ctrl-D"""

_COMMAND = re.compile(r"/([a-z]+)(?:\s+(.*))?", re.DOTALL)


class Conversation:
    """Messages so far, and the model that answers. A question that failed is not kept, so that one can go on."""

    def __init__(self, model: Model, params: SamplingParams, system: str | None, *, timings: bool) -> None:
        self._model = model
        self._params = params
        self._system = system
        self._timings = timings
        self._messages: list[dict[str, str]] = []
        self.exit_code = 0  # of the last error or interruption

    @property
    def messages(self) -> list[dict[str, str]]:
        """All that the model sees."""
        system = [{"role": "system", "content": self._system}] if self._system is not None else []
        return [*system, *self._messages]

    def take(self, line: str) -> bool:
        """Answer or obey a line; False if it was the last."""
        text = line.strip()
        command = _COMMAND.fullmatch(text)
        if command and command[1] == "exit":
            return False
        try:
            if command:
                self._obey(command[1], command[2] or "")
            elif text:
                self._answer(text)
        except EdgeLLMError as error:
            self._fail(str(error), error.exit_code)
        return True

    def _answer(self, text: str) -> None:
        question = {"role": "user", "content": text}
        try:
            stream = self._model.chat([*self.messages, question], self._params)
        except ContextLengthError as error:
            self._fail(
                f"the conversation has {error.num_prompt_tokens} tokens and the context {error.num_context_tokens}: "
                "this line was not taken; shorten it, or /reset starts anew",
                error.exit_code,
            )
            return
        with stream, interrupt_closes(stream):
            for piece in stream:
                write_text(piece.text)
        write_text("\n")
        if self._timings:
            sys.stderr.write(f"{summary(stream)}\n")
        if stream.finish_reason == "cancelled":
            self.exit_code = INTERRUPTED
        if stream.text or stream.finish_reason != "cancelled":
            self._messages += [question, {"role": "assistant", "content": stream.text}]
        if filled_context(stream, self._params):
            note(f"the context of {self._model.context} tokens is full: /reset starts anew")

    def _obey(self, command: str, rest: str) -> None:
        match command:
            case "help":
                note(HELP)
            case "reset":
                self._messages = []
                note("the conversation is forgotten")
            case "system":
                self._system = rest or None
                note("the system text is set" if rest else "there is no system text now")
            case "save" if rest:
                self._save(Path(rest).expanduser())
            case "save":
                self._fail("/save needs a file: /save FILE", 2)
            case _:
                self._fail(f"there is no command /{command}; /help lists them", 2)

    def _save(self, path: Path) -> None:
        text = json.dumps({"model": self._model.name, "messages": self.messages}, ensure_ascii=False, indent=2)
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(text + "\n")
        except FileExistsError:
            self._fail(f"{path} is there already; give another name", 2)
        except OSError as error:
            self._fail(f"{path} cannot be written ({error.strerror}); give another name", 1)
        else:
            note(f"saved {len(self.messages)} messages to {path}")

    def _fail(self, message: str, exit_code: int) -> None:
        sys.stderr.write(f"edgellm: {one_line(message)}\n")
        self.exit_code = exit_code
