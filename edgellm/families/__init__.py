"""Families of models. A family is one file of this folder, named after its architecture, and nothing else knows it.

The folder is the register, so that a new family touches no other file; a program adds one of its own with `register`.
"""

import pkgutil
from importlib import import_module

from edgellm.errors import UnsupportedModelError
from edgellm.families.base import Family

_registered: dict[str, Family] = {}


def register(family: Family) -> None:
    """Make a family known that is not part of edgellm; one of the same name is replaced."""
    _registered[family.name] = family


def find_family(architecture: str) -> Family:
    """The family of an architecture, by the name in GGUF and packed files. Errors: UnsupportedModelError."""
    module = architecture.replace("-", "_")
    family = _registered.get(architecture) or (_family_in(module) if module in _modules() else None)
    if family is None:
        known = sorted({*_registered, *(found.name for found in map(_family_in, _modules()) if found)})
        raise UnsupportedModelError(
            f"architecture {architecture!r:.100} is not supported; this version runs: {', '.join(known)}"
        )
    return family


def _modules() -> list[str]:
    return [module.name for module in pkgutil.iter_modules(__path__)]


def _family_in(module: str) -> Family | None:
    """The family that a module of this folder defines, if it is one's."""
    family: Family | None = getattr(import_module(f"{__name__}.{module}"), "FAMILY", None)
    return family
