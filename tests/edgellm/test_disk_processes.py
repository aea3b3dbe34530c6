"""Processes share the blocks of a folder, are killed, fork and meet a full disk, and the others go on."""

import contextlib
import subprocess
import sys
from pathlib import Path

from edgellm.memory.disk.lock import locked_folder
from tests.edgellm.disk_blocks import RECORD, has, held, is_block, name, open_store


def start(program: str, folder: Path, *arguments: int) -> subprocess.Popen[str]:
    # Python 3.12 warns of forks beside threads, which is what one of the programs is about
    options = ["-W", "error::ResourceWarning", "-W", "ignore::DeprecationWarning"]
    module = ["-m", "tests.edgellm.disk_blocks", program, str(folder), *map(str, arguments)]
    command = [sys.executable, *options, *module]
    root = Path(__file__).parents[2]
    return subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(program: str, folder: Path, *arguments: int) -> tuple[str, str]:
    with start(program, folder, *arguments) as process:
        out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    return out, err


def test_two_processes_write_and_a_third_reads(tmp_path: Path) -> None:
    with start("write", tmp_path, 0, 100, 1 << 30) as a, start("write", tmp_path, 50, 100, 1 << 30) as b:
        with contextlib.closing(open_store(tmp_path)) as blocks:
            while a.poll() is None or b.poll() is None:
                blocks.refresh()
                found = blocks.get_many([name(number) for number in range(150)])
                assert all(is_block(block, number) for number, block in enumerate(found))
            blocks.refresh()
            found = blocks.get_many([name(number) for number in range(150)])
            assert len(found) == 150 and all(is_block(block, number) for number, block in enumerate(found))
            assert held(tmp_path) == 150 * RECORD, "none was stored twice"
        assert a.communicate() == b.communicate() == ("", "")


def test_the_budget_holds_for_all_processes_together(tmp_path: Path) -> None:
    budget, largest = 20 * RECORD, 0
    with start("write", tmp_path, 0, 300, budget) as a, start("write", tmp_path, 300, 300, budget) as b:
        while a.poll() is None or b.poll() is None:
            with locked_folder(tmp_path):
                largest = max(largest, held(tmp_path))
        assert a.communicate() == b.communicate() == ("", "")
    assert 17 * RECORD <= largest <= budget


def test_killed_writers_lose_at_most_what_was_not_flushed(tmp_path: Path) -> None:
    out, err = run("kill_writers", tmp_path, 100)
    assert not err
    num_flushed, num_found = map(int, out.split())
    assert num_found >= num_flushed >= 50


def test_a_forked_child_writes_to_a_segment_of_its_own(tmp_path: Path) -> None:
    assert run("fork", tmp_path) == ("", "")
    with contextlib.closing(open_store(tmp_path)) as blocks:
        numbers = [*range(10), *range(100, 110), *range(1000, 1010), *range(1010, 1110)]
        for number in numbers:
            block = blocks.get(name(number))
            assert block is not None and is_block(block, number), number


def test_a_full_disk_ends_storing_and_keeps_what_is_there(tmp_path: Path) -> None:
    out, err = run("fill_disk", tmp_path)
    assert out == "[0, 1, 2]"
    assert err == "the disk cache stores nothing any more: [Errno 27] File too large\n"
    (path,) = tmp_path.glob("*.kv")
    assert path.stat().st_size == RECORD * 7 // 2
    with contextlib.closing(open_store(tmp_path)) as blocks:
        assert [number for number in range(10) if has(blocks, number)] == [0, 1, 2]
        assert blocks.get(name(3)) is None
