"""Who imports whom: downwards only."""

import ast
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = {"edgellm": ROOT / "edgellm", "edgellm.kernels": ROOT / "kernels",
           "edgellm.converters": ROOT / "converters", "edgellm.apps": ROOT / "apps"}  # fmt: skip

# A module or package, and the parts of edgellm that it may import besides itself
ALLOWED = {
    "edgellm.kernels": {"edgellm.errors"},
    "edgellm.errors": set(),
    "edgellm.config": {"edgellm.errors"},
    "edgellm.tokenizer": {"edgellm.errors"},
    "edgellm.memory": {"edgellm.kernels", "edgellm.config", "edgellm.errors"},
    "edgellm.model": {"edgellm.kernels", "edgellm.memory", "edgellm.packed", "edgellm.config", "edgellm.errors"},
    "edgellm.engine": {
        "edgellm.kernels", "edgellm.memory", "edgellm.model", "edgellm.packed", "edgellm.config", "edgellm.errors",
        "edgellm.tokenizer", "edgellm.template",
    },
    "edgellm.converters": {
        "edgellm.kernels.layouts", "edgellm.packed", "edgellm.packed.format", "edgellm.packed.header",
        "edgellm.packed.write", "edgellm.config", "edgellm.errors", "edgellm.tokenizer",
    },
}  # fmt: skip


def modules() -> dict[str, Path]:
    found = {}
    for package, folder in FOLDERS.items():
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join((package, *(part for part in parts if part != "__init__")))] = path
    return found


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are written in full"
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name == "edgellm" or name.startswith("edgellm.")} & set(modules())


def within(name: str, part: str) -> bool:
    return name == part or name.startswith(f"{part}.")


def test_imports_go_downwards_only() -> None:
    for name, path in modules().items():
        for part, allowed in ALLOWED.items():
            if within(name, part):
                upwards = {found for found in imports(path) if not any(within(found, a) for a in {part, *allowed})}
                assert not upwards, f"{name} imports {upwards}"


def test_only_apps_and_the_front_door_know_apps_and_converters() -> None:
    for name, path in modules().items():
        found = imports(path)
        if not within(name, "edgellm.apps"):
            assert not any(within(other, "edgellm.apps") for other in found), name
            if not within(name, "edgellm.converters") and name != "edgellm.load":
                assert not any(within(other, "edgellm.converters") for other in found), name


def test_running_a_model_does_not_import_numba() -> None:
    for name, path in modules().items():
        if not within(name, "edgellm.kernels.cpu") and not within(name, "edgellm.kernels.simd"):
            compiles = any(
                within(other, "edgellm.kernels.simd") or within(other, "edgellm.kernels.cpu") for other in imports(path)
            )
            assert not compiles or name == "edgellm.kernels.compile", name


def test_every_package_is_named_in_pyproject() -> None:
    named = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert sorted(named) == sorted(name for name, path in modules().items() if path.name == "__init__.py")
