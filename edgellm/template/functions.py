"""The functions, methods and filters of chat templates, each made so that it cannot build much from little."""

import html
import json
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from functools import wraps
from typing import Any

from jinja2 import Environment, pass_environment
from jinja2.exceptions import TemplateRuntimeError
from jinja2.filters import FILTERS as BUILT_IN
from jinja2.utils import Namespace

from edgellm.template.budget import MAX_ARGUMENT, MAX_SEARCH, MAX_WORK, BudgetError, meter, size


class OpaqueNamespace(Namespace):
    def __repr__(self) -> str:
        return "<namespace>"  # the inherited one writes all values out


def raise_exception(message: object) -> None:
    raise TemplateRuntimeError(str(message))


def strftime_now(form: str) -> str:
    if len(form) > 256 or re.search(r"%[^a-zA-Z%]*\d{3}", form):
        raise BudgetError(f"strftime_now is called with the format {form[:256]!r}")
    return datetime.now().strftime(form)


def check_format(form: str, *arguments: Any) -> None:
    if re.search(r"%[^a-zA-Z%]*(\d{4}|\*)|\{[^{}]*(\d{4}|\{)", form):
        raise BudgetError(f"it formats with a width that is huge or computed: {form[:80]!r}")
    fields = form.count("%") + form.count("{")
    meter().spend(len(form) + fields * size(arguments, MAX_WORK))


def _check_replace(text: str, old: str, new: str, *count: int) -> None:
    meter().spend(len(text) + text.count(old) * len(new))


def _check_join(separator: str, items: list[Any]) -> None:
    meter().spend(len(separator) * len(items) + sum(len(str(item)) for item in items))


_PLAIN_METHODS = (
    "capitalize casefold count endswith find index isalnum isalpha isascii isdecimal isdigit isidentifier islower "
    "isnumeric isprintable isspace istitle isupper lower lstrip partition removeprefix removesuffix rfind rindex "
    "rpartition rsplit rstrip split splitlines startswith strip swapcase title upper center ljust rjust zfill"
)
_BOUNDED_METHODS: dict[str, Callable[..., None]] = {
    "replace": _check_replace,
    "join": _check_join,
    "format": lambda text, *values, **named: check_format(text, *values, named),
}
METHODS: dict[type, frozenset[str]] = {
    str: frozenset((*_PLAIN_METHODS.split(), *_BOUNDED_METHODS)),
    list: frozenset(("count", "index", "copy")),
    tuple: frozenset(("count", "index")),
    dict: frozenset(("get", "items", "keys", "values", "copy")),
}


def call_method(receiver: str, name: str, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    args = tuple(list(arg) if isinstance(arg, Iterator) else arg for arg in args)
    _check_arguments(args, len(receiver))
    if name in _BOUNDED_METHODS:
        _BOUNDED_METHODS[name](receiver, *args, **kwargs)
    return method(*args, **kwargs)


def _check_arguments(arguments: tuple[Any, ...], searched: int) -> None:
    for argument in arguments:
        if isinstance(argument, int) and abs(argument) > MAX_ARGUMENT:
            raise BudgetError(f"it asks for a width or count of {argument}")
        if isinstance(argument, str) and len(argument) * searched > MAX_SEARCH:
            raise BudgetError("it searches for a huge text in a huge text")


def _metered(function: Callable[..., Any]) -> Callable[..., Any]:
    num_before = 2 if hasattr(function, "jinja_pass_arg") else 1  # the context, and the value

    @wraps(function)  # which also keeps Jinja2's marks on the function
    def filter_(*args: Any, **kwargs: Any) -> Any:
        budget = meter()
        budget.step()
        value = args[num_before - 1]
        _check_arguments((*args[num_before:], *kwargs.values()), len(value) if isinstance(value, str) else 1)
        result = function(*args, **kwargs)
        return budget.made(list(result) if isinstance(result, Iterator) else result)

    return filter_


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As transformers defines it: no HTML escapes, no ASCII escapes."""
    options = (indent, *(separators or ()))
    if any(len(part) > 64 if isinstance(part, str) else (part or 0) > 64 for part in options):
        raise BudgetError("it indents JSON by more than 64 characters")
    encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    chunks = []
    for chunk in encoder.iterencode(value):
        meter().spend(len(chunk))
        chunks.append(chunk)
    return "".join(chunks)


def _replace(value: Any, old: str, new: str, count: int | None = None) -> str:
    _check_replace(str(value), str(old), str(new))
    return str(value).replace(str(old), str(new), -1 if count is None else count)


@pass_environment
def _join(environment: Environment, value: Any, d: str = "", attribute: str | int | None = None) -> str:
    items = list(value)
    if attribute is not None:
        items = [environment.getitem(item, attribute) for item in items]
    _check_join(str(d), items)
    return str(d).join(map(str, items))


def _indent(s: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    padding = width if isinstance(width, str) else " " * width
    meter().spend(len(padding) * (1 + s.count("\n")))
    result: str = BUILT_IN["indent"](s, width, first, blank)
    return result


def _format(value: str, *args: Any, **kwargs: Any) -> str:
    check_format(str(value), *args, kwargs)
    return str(value) % (kwargs or args)


@pass_environment
def _sum(environment: Environment, iterable: Any, attribute: str | int | None = None, start: float = 0) -> Any:
    if not isinstance(start, int | float):
        raise TemplateRuntimeError(f"sum adds numbers, and is told to start with a {type(start).__name__}")
    return BUILT_IN["sum"](environment, iterable, attribute, start)


@pass_environment
def _unique(environment: Environment, value: Any, *args: Any, **kwargs: Any) -> Any:
    items = list(value)
    meter().spend(len(items) ** 2)  # numbers can be chosen to collide in a hash table
    return BUILT_IN["unique"](environment, items, *args, **kwargs)


_BOUNDED_FILTERS: Mapping[str, Callable[..., Any]] = {
    "e": lambda value: html.escape(str(value)),
    "escape": lambda value: html.escape(str(value)),
    "format": _format,
    "indent": _indent,
    "join": _join,
    "replace": _replace,
    "safe": lambda value: value,
    "sum": _sum,
    "tojson": _tojson,
    "unique": _unique,
}
_PLAIN_FILTERS = (
    "abs attr batch capitalize center count d default dictsort first float groupby int items last length list lower "
    "map max min reject rejectattr reverse round select selectattr slice sort string title trim truncate upper "
    "urlencode"
)
FILTERS = {name: _metered(BUILT_IN[name]) for name in _PLAIN_FILTERS.split()} | {
    name: _metered(function) for name, function in _BOUNDED_FILTERS.items()
}
