"""Units: each is compiled by itself, and again only when its own source, or what all depend on, has changed."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgellm.kernels import jit, objects
from edgellm.kernels.targets import host_target
from edgellm.kernels.units import CORE, FOLDER, Unit, core_sources, own_units
from edgellm.memory.buffers import address
from tests.kernels.caches import link_kernels

FAMILYS = """
from edgellm.kernels.simd.kernel import kernel
from edgellm.kernels.simd.memory import load_i32, load_i64, store_i32

@kernel
def multiply(op, step, thread, threads):
    at = load_i64(op)
    store_i32(at, load_i32(at) * FACTOR)

def entry_points():
    return {"multiply": multiply}
"""


def multiplied(library: jit.Library, number: int) -> int:
    """By the kernel of FAMILYS."""
    numbers = np.array([number], np.int32)
    record = np.array([address(numbers)], np.int64)
    library.entry("multiply")(address(record), 0, 0, 1)
    return int(numbers[0])


@pytest.mark.usefixtures("library")
def test_a_familys_own_unit_is_compiled_when_its_source_changes(
    kernel_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, unit = tmp_path / "cache", Unit("gates", tmp_path / "gates.py")
    link_kernels(kernel_cache, cache)
    compiled: list[Unit] = []
    compile_into = jit.compile_into

    def spy(cache: Path, target: object, units: list[Unit], **options: object) -> object:
        compiled.extend(units)
        return compile_into(cache, target, units, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(jit, "compile_into", spy)
    for factor in (2, 3):
        unit.source.write_text(FAMILYS.replace("FACTOR", str(factor)))
        assert not jit.is_cached(cache, (CORE, unit))
        assert multiplied(jit.load(cache, (CORE, unit)), 7) == factor * 7
        assert compiled == [unit]
        assert jit.is_cached(cache, (CORE, unit))
        assert multiplied(jit.load(cache, (CORE, unit)), 7) == factor * 7
        assert compiled == [unit], "nothing has changed"
        compiled.clear()
    unit.source.write_text(FAMILYS.replace("FACTOR", "2"))
    assert jit.is_cached(cache, (CORE, unit)), "what was compiled before is still there"


def test_a_changed_source_leaves_the_objects_of_other_units_valid(tmp_path: Path) -> None:
    units, target = [], host_target()
    for unit in own_units():
        folder = tmp_path / unit.name
        folder.mkdir()
        units.append(unit._replace(source=Path(shutil.copy(unit.source, folder))))
    before = [objects.name_of(unit, target) for unit in units]
    assert before == [objects.name_of(unit, target) for unit in own_units()]
    assert len(set(before)) == len(units)
    for number, unit in enumerate(units):
        text = unit.source.read_text()
        unit.source.write_text(text + "\n")
        after = [objects.name_of(unit, target) for unit in units]
        assert [i for i, name in enumerate(after) if name != before[i]] == [number]
        unit.source.write_text(text)


def test_every_source_is_a_units_own_or_one_that_all_depend_on() -> None:
    own = [unit.source for unit in own_units() if unit != CORE]
    assert sorted([*own, *core_sources()]) == sorted(FOLDER.rglob("*.py"))
    assert {FOLDER / "quants" / "quant.py", FOLDER / "kv_formats" / "kv_format.py", CORE.source} <= set(core_sources())


def test_objects_of_other_targets_and_choices_have_other_names(library: jit.Library) -> None:
    target = library.target
    assert target.measured is not None
    other = replace(target, measured=target.measured._replace(fast_bf16=not target.measured.fast_bf16))
    targets = (target, other, replace(target, measured=None), replace(target, cpu="another"))
    assert len({objects.name_of(CORE, target) for target in targets}) == len(targets)
