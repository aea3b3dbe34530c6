"""Arrays for kernels: zeroed, 64-byte aligned, and committed by the system only where they are touched."""

import ctypes
import mmap
import sys
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Item = TypeVar("Item", bound=np.generic)

ALIGNMENT = 64  # bytes of a cache line, and of the widest register
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
CAN_COMMIT = _LIBC is not None
_TRIM = getattr(_LIBC, "malloc_trim", None)  # of the GNU C library
_MADV_POPULATE_WRITE = 23  # linux/mman.h, since Linux 5.14


def aligned_zeros(shape: int | tuple[int, ...], dtype: type[Item]) -> NDArray[Item]:
    """Zeros [shape] whose first element is 64-byte aligned."""
    kind = np.dtype(dtype)
    size = int(np.prod(shape)) * kind.itemsize
    raw = np.zeros(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(kind).reshape(shape)


def elements(array: NDArray[np.int32] | NDArray[np.int64]) -> memoryview:
    """The elements themselves, in a row, as Python's own numbers: read and written in a third of NumPy's time.

    Slices are written from arrays of the standard library, of type "i" or "q".
    """
    return array.reshape(-1).data.cast("B").cast("q" if array.itemsize == 8 else "i")


def address(array: NDArray[Any] | None) -> int:
    """Where the array's bytes begin; 0 for None. The caller keeps the array alive."""
    return 0 if array is None else int(array.__array_interface__["data"][0])  # a third of the time of .ctypes


def commit(*arrays: NDArray[Any]) -> None:
    """Have the system commit the arrays' memory now, whoever uses it meanwhile; an older Linux leaves it as it is."""
    assert _LIBC is not None
    for array in arrays:
        begin = address(array)
        end = address(array) + array.nbytes
        page = begin - begin % mmap.PAGESIZE
        _LIBC.madvise(ctypes.c_void_p(page), ctypes.c_size_t(end - page), _MADV_POPULATE_WRITE)


def trim() -> None:
    """Give memory that was freed back to the system now, where the C library can."""
    if _TRIM is not None:
        _TRIM(ctypes.c_size_t(0))
