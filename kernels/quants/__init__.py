"""Weight formats. One file of this folder is one format, or a few akin: how they lie in memory, are made and read, and
their kernels.

The folder is the register: a new format is a new file that defines `QUANTS`, and touches no other.
"""

import pkgutil
from functools import cache
from importlib import import_module

from edgellm.kernels.quants.quant import Quant


@cache
def quants() -> dict[str, Quant]:
    """All weight formats, by name."""
    modules = [import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
    return {quant.name: quant for module in modules for quant in getattr(module, "QUANTS", ())}


@cache
def exact_quants() -> dict[str, Quant]:
    """The format that holds a foreign type bit for bit, by GGUF's name of the type."""
    return {kind: quant for quant in quants().values() for kind in quant.exact}
