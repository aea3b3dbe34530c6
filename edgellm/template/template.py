"""Conversations to the prompt that a model was trained on, by the chat template that came with it."""

import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from jinja2 import Template

from edgellm.errors import OptionError, TemplateError
from edgellm.template.budget import metered, size
from edgellm.template.sandbox import TemplateEnvironment
from edgellm.tokenizer import Tokenizer

Messages = Sequence[Mapping[str, object]]

MAX_SOURCE = 1 << 18  # characters; the largest known are a tenth of it
MAX_INPUT = 1 << 28  # characters of messages and tools
MAX_DEPTH = 64  # of lists and mappings in a message

_PRIVATE_USE = range(0xF0000, 0x10FFFE)  # characters that no text gives a meaning to
_REMEDY = "write the prompt yourself and use generate() (--raw on the command line)"


class ChatTemplate:
    """A Jinja2 template. TemplateError if it does not compile, fails, attacks or does not end."""

    def __init__(self, source: str, *, bos_token: str, eos_token: str) -> None:
        if len(source) > MAX_SOURCE:
            raise TemplateError(f"the chat template has {len(source)} characters, more than {MAX_SOURCE}; {_REMEDY}")
        self._source = source
        self._bos_token = bos_token
        self._eos_token = eos_token
        self._template: Template = _guarded(lambda: TemplateEnvironment().from_string(source), 0)

    def render(self, messages: Messages, *, tools: Messages | None = None, add_generation_prompt: bool = True) -> str:
        """The prompt as text. Messages are mappings with a "role", and a "content" of text, text parts or None."""
        plain_messages, plain_tools = _checked(messages, tools)
        return self._render(plain_messages, plain_tools, add_generation_prompt)

    def encode(
        self,
        tokenizer: Tokenizer,
        messages: Messages,
        *,
        tools: Messages | None = None,
        add_generation_prompt: bool = True,
    ) -> list[int]:
        """The ids of `render`, in which special tokens come from the template only: in messages they are plain text.

        Where a message spells such a token, a mark is hidden inside the spelling while rendering, so that the
        template's own tokens are told apart from it; the mark is taken out of the plain texts between them.
        """
        inputs = _checked(messages, tools)
        mark = _unused_character(self._source, inputs)
        hidden_messages, hidden_tools = _map_texts(inputs, lambda text: tokenizer.control.hide(text, mark))
        rendered = self._render(hidden_messages, hidden_tools, add_generation_prompt)
        parts = tokenizer.control.split(rendered)
        return tokenizer.encode_parts(part.replace(mark, "") if isinstance(part, str) else part for part in parts)

    def _render(self, messages: Any, tools: Any, add_generation_prompt: bool) -> str:
        variables = {
            "messages": messages,
            "tools": tools,
            "add_generation_prompt": add_generation_prompt,
            "bos_token": self._bos_token,
            "eos_token": self._eos_token,
        }
        rendered: str = _guarded(lambda: self._template.render(variables), size([messages, tools], 2 * MAX_INPUT))
        return rendered


def _guarded(action: Callable[[], Any], input_size: int) -> Any:
    try:
        with metered(input_size):
            return action()
    except Exception as error:  # a template can raise whatever Python can
        reason = str(error) or type(error).__name__
        line = getattr(error, "lineno", None)
        where = f" in line {line}" if line else ""
        raise TemplateError(f"the chat template fails{where}: {reason}; {_REMEDY}") from error


def _checked(messages: Messages, tools: Messages | None) -> tuple[Any, Any]:
    """Messages and tools as plain lists, mappings and texts; OptionError where they are not what they should be."""
    if isinstance(messages, str) or not isinstance(messages, Sequence) or not messages:
        raise OptionError(f"messages are {reprlib.repr(messages)}; give a list of at least one mapping")
    for message in messages:
        _check_message(message)
    if tools is not None and (not isinstance(tools, list | tuple) or not all(isinstance(t, Mapping) for t in tools)):
        raise OptionError(f"tools are {reprlib.repr(tools)}; give a list of mappings (JSON schemas), or None")
    plain = _plain(list(messages)), _plain(None if tools is None else list(tools))
    total = sum(map(len, _texts(plain)))
    if total > MAX_INPUT:
        raise OptionError(f"messages and tools hold {total} characters; give at most {MAX_INPUT}")
    return plain


def _check_message(message: object) -> None:
    if not isinstance(message, Mapping):
        raise OptionError(f"a message is {reprlib.repr(message)}; give a mapping with role and content")
    role = message.get("role")
    content = message.get("content")
    if not isinstance(role, str) or not role:
        raise OptionError(f'a message has the role {reprlib.repr(role)}; give a text such as "user"')
    if content is None or isinstance(content, str):
        return
    parts = content if isinstance(content, list | tuple) else [None]
    for part in parts:
        if not (isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)):
            raise OptionError(
                f"a message has the content {reprlib.repr(content)}; give a text, None, or a list of parts "
                '{"type": "text", "text": ...}'
            )


def _plain(value: object, depth: int = 0) -> Any:
    if depth > MAX_DEPTH:
        raise OptionError(f"messages or tools are nested more than {MAX_DEPTH} deep; give flatter ones")
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {str(key): _plain(entry, depth + 1) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry, depth + 1) for entry in value]
    raise OptionError(
        f"messages or tools hold {reprlib.repr(value)}; give what JSON knows: texts, numbers, lists, mappings"
    )


def _map_texts(value: Any, function: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return function(value)
    if isinstance(value, dict):
        return {function(key): _map_texts(entry, function) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_map_texts(entry, function) for entry in value]
    return value


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, entry in value.items():
            yield key
            yield from _texts(entry)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _texts(entry)


def _unused_character(source: str, inputs: Any) -> str:
    used = set(source).union(*_texts(inputs))
    unused = next((chr(code) for code in _PRIVATE_USE if chr(code) not in used), None)
    if unused is None:
        raise OptionError("messages use every private-use character of Unicode; leave one out")
    return unused
