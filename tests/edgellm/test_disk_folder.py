"""The folder of the disk cache: whose it is, what lies there, and that nothing else is touched."""

import logging
import os
from pathlib import Path

import pytest

from edgellm.errors import CacheFolderError
from edgellm.memory.disk.folder import clear_folder, describe_folder
from tests.edgellm.disk_blocks import (
    MODEL,
    OTHER_MODEL,
    RECORD,
    age,
    fill,
    has,
    held,
    is_block,
    name,
    open_store,
    opened,
    put,
    put_all,
)


def test_only_the_user_may_read(folder: Path) -> None:
    with opened(folder, budget=RECORD) as blocks:
        put_all(blocks, range(1))
        put_all(blocks, range(1, 2))
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.name.split(".")[-1] for path in folder.iterdir()} == {"kv", "evicted"}
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in folder.iterdir())


def test_a_folder_that_cannot_be_made_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CacheFolderError, match=r"file.*File exists.*choose another folder"):
        open_store(tmp_path / "file")


def test_clear_leaves_what_others_are_writing(folder: Path) -> None:
    fill(folder, range(3))
    with opened(folder) as blocks:
        put_all(blocks, range(3, 5))
        assert clear_folder(folder) == 3 * RECORD
        blocks.refresh()
        assert [number for number in range(5) if blocks.get(name(number))] == [3, 4]
        put_all(blocks, range(1))
        assert has(blocks, 0) and held(folder) == 3 * RECORD
        assert clear_folder(folder) == 0
    assert clear_folder(folder) == 3 * RECORD and held(folder) == 0
    assert clear_folder(folder / "absent") == 0


def test_describe_counts_by_model(folder: Path) -> None:
    fill(folder, range(3))
    (path,) = folder.glob("*.kv")
    age(path, 1000)
    with opened(folder, model=OTHER_MODEL) as blocks:
        put(blocks, 4, OTHER_MODEL)
        blocks.flush()
        theirs, ours = describe_folder(folder)
    assert (theirs.model, theirs.blocks, theirs.tokens, theirs.nbytes) == (OTHER_MODEL, 1, 5, RECORD)
    assert (ours.model, ours.blocks, ours.tokens, ours.nbytes) == (MODEL, 3, 1 + 2 + 3, 3 * RECORD)
    assert ours.last_use == path.stat().st_mtime < theirs.last_use - 900
    assert describe_folder(folder / "absent") == []


def test_foreign_files_are_left_alone_and_reported_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(folder, range(2))
    foreign = {"notes.txt": b"hello", "1-0123456789abcdef.kv": b"not a segment" * 100, "2-x.kv": b"", ".hidden": b""}
    for file, content in foreign.items():
        (folder / file).write_bytes(content)
    (folder / "3-0123456789abcdef.kv").mkdir()
    os.mkfifo(folder / "4-0123456789abcdef.kv")
    (folder / "5-0123456789abcdef.kv").symlink_to(folder / "notes.txt")
    with opened(folder) as blocks:
        for _ in range(3):
            blocks.refresh()
        block = blocks.get(name(1))
        assert block is not None and is_block(block, 1)
        assert len(caplog.records) == 7 and len({record.message for record in caplog.records}) == 7
        assert all(record.levelno == logging.WARNING for record in caplog.records)
    clear_folder(folder)
    assert (folder / "notes.txt").read_bytes() == b"hello" and (folder / ".hidden").exists()
