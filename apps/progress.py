"""Progress bars on standard error, gone when done; nothing where that is no terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """Progress of one thing; gives a function to call with (done, total)."""
    with _progress() as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def byte_bar() -> Iterator[Callable[[str, int, int], None]]:
    """Progress of stages, one after the other; gives a function to call with (stage, bytes done, bytes in all)."""
    with _progress(DownloadColumn()) as progress:
        task = progress.add_task("", total=None)
        yield lambda stage, done, total: progress.update(task, description=stage, completed=done, total=total)


def _progress(*columns: DownloadColumn) -> Progress:
    console = Console(stderr=True, markup=False, highlight=False)
    text = TextColumn("{task.description:10}", markup=False)
    return Progress(
        text,
        BarColumn(),
        *columns,
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
