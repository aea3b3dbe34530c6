"""Who imports whom: downwards only."""

import ast
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = {"edgellm": ROOT / "edgellm", "edgellm.kernels": ROOT / "kernels",
           "edgellm.converters": ROOT / "converters", "edgellm.apps": ROOT / "apps"}  # fmt: skip

KERNELS = {"edgellm.kernels", "edgellm.errors"}
NETWORKS = {"edgellm.families", "edgellm.runtime", "edgellm.packed", "edgellm.memory", *KERNELS}
# How an answer's tokens are chosen, and what is known of them, is said in the engine's words
SAMPLING = {"edgellm.engine.params", "edgellm.engine.logprobs"}

# What packs models on the way: they import converters within functions, so that a start is without
TO_CONVERTERS = {"edgellm.load", "edgellm.pull", "edgellm.download"}

# A module or package, and the parts of edgellm that it may import besides itself
ALLOWED = {
    "edgellm.kernels": {"edgellm.errors"},
    "edgellm.errors": set(),
    "edgellm.tokenizer": {"edgellm.errors"},
    "edgellm.families": {"edgellm.runtime.graph", *KERNELS},
    "edgellm.runtime": {"edgellm.families", "edgellm.memory.buffers", *KERNELS},
    "edgellm.packed": {"edgellm.families", "edgellm.memory.buffers", *KERNELS},
    "edgellm.memory": {"edgellm.families.network", *KERNELS},
    "edgellm.backends": NETWORKS | SAMPLING,
    "edgellm.inspect": NETWORKS | {"edgellm.backends"},
    "edgellm.engine": NETWORKS | {"edgellm.backends", "edgellm.inspect", "edgellm.tokenizer", "edgellm.template"},
    "edgellm.converters": {"edgellm.families", "edgellm.packed", "edgellm.tokenizer", "edgellm.version", *KERNELS},
}


def modules() -> dict[str, Path]:
    found = {}
    for package, folder in FOLDERS.items():
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join((package, *(part for part in parts if part != "__init__")))] = path
    return found


def imports(path: Path, *, at_once: bool = False) -> set[str]:
    """Modules that a file imports, anywhere in it, or only `at_once` when it is imported itself."""
    names, tree = set(), ast.parse(path.read_text())
    for node in tree.body if at_once else ast.walk(tree):
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
        if not within(name, "edgellm.apps") and name != "edgellm.__main__":
            assert not any(within(other, "edgellm.apps") for other in found), name
            if not within(name, "edgellm.converters") and name not in TO_CONVERTERS:
                assert not any(within(other, "edgellm.converters") for other in found), name


def test_running_a_model_does_not_import_numba() -> None:
    """Files of formats import their kernels where those are compiled: within `entry_points`."""
    for name, path in modules().items():
        if not within(name, "edgellm.kernels.cpu") and not within(name, "edgellm.kernels.simd"):
            found = imports(path, at_once=True)
            parts = ("edgellm.kernels.simd", "edgellm.kernels.cpu")
            compiles = any(within(other, part) for other in found for part in parts)
            assert not compiles or name == "edgellm.kernels.compile", name


def test_every_package_is_named_in_pyproject() -> None:
    named = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert sorted(named) == sorted(name for name, path in modules().items() if path.name == "__init__.py")
