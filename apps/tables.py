"""Tables and figures for people."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgellm.apps.terminal import one_line

PIPE_WIDTH = 10_000  # characters: no cell is cut in a pipe


def write_table(columns: Mapping[str, Literal["left", "right"]], rows: Iterable[Sequence[str]]) -> None:
    """A table on standard output; columns: title -> side on which its cells are flush."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title, justify in columns.items():
        table.add_column(title, justify=justify, overflow="fold")
    for row in rows:
        table.add_row(*(Text(one_line(cell)) for cell in row))
    _console().print(table)


def write_facts(facts: Mapping[str, object]) -> None:
    """What there is to say, a line each."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    for name, value in facts.items():
        table.add_row(Text(name, style="bold"), Text(one_line(str(value))))
    _console().print(table)


def size(nbytes: float) -> str:
    """93 MB"""
    return scaled(nbytes, ("B", "kB", "MB", "GB", "TB"))


def scaled(value: float, units: Sequence[str]) -> str:
    """Three digits and a unit, each a thousand of the one before."""
    for unit in units[:-1]:
        if value < 999.5:
            return f"{value:.3g} {unit}".rstrip()
        value /= 1000
    return f"{value:.3g} {units[-1]}"


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, markup=False, highlight=False)
