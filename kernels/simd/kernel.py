"""The two decorators that decide how kernel functions compile: a call, or part of its caller.

Both compile without bounds checks, exceptions, reference counts or fast-math. Fast-math stays off: attention masks with
-inf, and every sum has one fixed order. Fused multiply-adds are written as `fma`.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from numba import njit

F = TypeVar("F", bound=Callable[..., Any])


def _compiled(function: F, forceinline: bool) -> F:
    options = {"nogil": True, "boundscheck": False, "error_model": "numpy", "_nrt": False}
    # Nothing calls a kernel function from Python: its wrappers took a fifth of the time to compile.
    options |= {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    made: F = njit(forceinline=forceinline, **options)(function)
    return made


def kernel(function: F) -> F:
    """A kernel function that is called."""
    return _compiled(function, forceinline=False)


def inlined(function: F) -> F:
    """A kernel function that becomes part of each caller, so that tuples of vectors stay in registers."""
    return _compiled(function, forceinline=True)
