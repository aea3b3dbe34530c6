"""Formats of cached keys and values. One file of this folder is one format; the folder is the register."""

import pkgutil
from functools import cache
from importlib import import_module

from edgellm.kernels.kv_formats.kv_format import KVFormat


@cache
def kv_formats() -> dict[str, KVFormat]:
    """All formats, by name."""
    modules = [import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
    found = (getattr(module, "FORMAT", None) for module in modules)
    return {kv_format.name: kv_format for kv_format in found if kv_format is not None}
