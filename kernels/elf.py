"""Puts compiled kernels into memory: a loader of ELF object files for x86-64 Linux.

It knows what compile.py emits: code, constants, zeros, three kinds of relocation and calls of C functions. LLVM's own
linker takes any object, and costs every process 50 MB.

    image   [ code and constants | stubs ][ what is written to ]      each on pages of its own
              executable                    not executable

A stub jumps to a C function, which may be too far away for a call. Source: System V ABI, AMD64 supplement, chapter 4.
"""

import ctypes
import mmap
import platform
import struct
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import KernelError

RUNS_HERE = sys.platform == "linux" and platform.machine() == "x86_64"

_SECTION = np.dtype(
    [
        *(("name", "u4"), ("type", "u4"), ("flags", "u8"), ("address", "u8"), ("offset", "u8"), ("size", "u8")),
        *(("link", "u4"), ("info", "u4"), ("alignment", "u8"), ("entry_size", "u8")),
    ]
)
_SYMBOL = np.dtype(
    [("name", "u4"), ("info", "u1"), ("other", "u1"), ("section", "u2"), ("value", "i8"), ("size", "u8")]
)
_RELOCATION = np.dtype([("offset", "i8"), ("kind", "u4"), ("symbol", "u4"), ("addend", "i8")])
_HEADER_BYTES = 64
_RELOCATABLE, _X86_64 = 1, 62  # a file's type and machine
_PROGBITS, _SYMTAB, _RELA, _NOBITS = 1, 2, 4, 8  # types of sections
_WRITE, _ALLOC = 1, 2  # flags of sections
_WORD, _RELATIVE, _CALL = 1, 2, 4  # kinds of relocations: R_X86_64_64, _PC32, _PLT32
_JUMP = b"\xff\x25\x00\x00\x00\x00"  # jmp to the address that follows
_STUB = 16  # bytes of a stub; a multiple of it is where every part begins


class Image:
    """An object file in memory, ready to run for as long as this object lives."""

    def __init__(self, code: bytes) -> None:
        """Errors: KernelError for an object that calls what is not there, or is of a kind that we do not know."""
        sections, symbols, names = _tables(code)
        undefined = {index: name for index, name in names.items() if not symbols[index]["section"]}
        places, stubs, written, size = _layout(sections, len(undefined))
        self._mapping = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        bytes_ = np.frombuffer(self._mapping, np.uint8)
        base = bytes_.ctypes.data
        for index, place in places.items():
            if sections[index]["type"] == _PROGBITS:
                content = _content(code, sections[index], np.dtype(np.uint8))
                bytes_[place : place + len(content)] = content
        known = np.array([places.get(section, -1) for section in symbols["section"].tolist()])
        targets = np.where(known < 0, -1, base + known + symbols["value"])  # [symbols] addresses; -1: not in memory
        for place, (index, name) in zip(range(stubs, written, _STUB), undefined.items(), strict=False):
            stub = _JUMP + struct.pack("<q", _c_function(name))
            bytes_[place : place + len(stub)] = np.frombuffer(stub, np.uint8)
            targets[index] = base + place
        for section in sections[sections["type"] == _RELA]:
            if int(section["info"]) in places:
                relocations = _content(code, section, _RELOCATION)
                _relocate(bytes_, places[int(section["info"])], relocations, targets, set(undefined))
        _make_executable(base, written)
        self.addresses = {name: int(targets[index]) for index, name in names.items() if index not in undefined}


def _tables(code: bytes) -> tuple[NDArray[Any], NDArray[Any], dict[int, str]]:
    """Sections and symbols of a file, and the names of the symbols that other files may see."""
    if (
        code[:6] != b"\x7fELF\x02\x01"
        or len(code) < _HEADER_BYTES
        or struct.unpack_from("<HH", code, 16) != (_RELOCATABLE, _X86_64)
    ):
        raise KernelError(
            "the compiled kernels are not an ELF object for x86-64; remove the kernel cache and try again"
        )
    (start,) = struct.unpack_from("<Q", code, 40)
    (count,) = struct.unpack_from("<H", code, 60)
    sections = np.frombuffer(code, _SECTION, count, start)
    (table,) = sections[sections["type"] == _SYMTAB]
    symbols = _content(code, table, _SYMBOL)
    texts = _content(code, sections[table["link"]], np.dtype(np.uint8)).tobytes()
    first_global = int(table["info"])
    starts = symbols["name"][first_global:].tolist()
    names = {first_global + at: texts[start : texts.index(b"\0", start)].decode() for at, start in enumerate(starts)}
    return sections, symbols, names


def _content(code: bytes, section: Any, kind: np.dtype[Any]) -> NDArray[Any]:
    return np.frombuffer(code, kind, int(section["size"]) // kind.itemsize, int(section["offset"]))


def _layout(sections: NDArray[Any], num_stubs: int) -> tuple[dict[int, int], int, int, int]:
    """Where sections, stubs and what is written to begin in the image, and its size, all in bytes."""
    places: dict[int, int] = {}

    def put(chosen: NDArray[np.bool], end: int) -> int:
        for index in np.flatnonzero(chosen).tolist():
            places[index] = _round_up(end, max(int(sections[index]["alignment"]), _STUB))
            end = places[index] + int(sections[index]["size"])
        return _round_up(end, _STUB)

    kept = (sections["flags"] & _ALLOC != 0) & np.isin(sections["type"], (_PROGBITS, _NOBITS))
    writable = sections["flags"] & _WRITE != 0
    stubs = put(kept & ~writable, 0)
    written = _round_up(stubs + num_stubs * _STUB, mmap.PAGESIZE)
    return places, stubs, written, put(kept & writable, written)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _c_function(name: str) -> int:
    try:
        return ctypes.cast(getattr(ctypes.CDLL(None), name), ctypes.c_void_p).value or 0
    except AttributeError:
        raise KernelError(f"the compiled kernels call {name}, which this system's C library does not have") from None


def _relocate(
    image: NDArray[np.uint8], place: int, relocations: NDArray[Any], targets: NDArray[np.int64], undefined: set[int]
) -> None:
    """Write the addresses that a section at `place` leaves open."""
    kinds = relocations["kind"]
    values = targets[relocations["symbol"]] + relocations["addend"]
    far = np.isin(relocations["symbol"], list(undefined)) & (kinds != _CALL)
    unknown = ~np.isin(kinds, (_WORD, _RELATIVE, _CALL)) | (targets[relocations["symbol"]] < 0) | far
    if unknown.any():
        raise KernelError(f"the compiled kernels hold a relocation of an unknown kind: {relocations[unknown][0]}")
    at = place + relocations["offset"]
    words = kinds == _WORD
    relatives = kinds != _WORD
    distances = values - (image.ctypes.data + at)
    image[at[words, None] + np.arange(8)] = values[words].astype("<i8").view(np.uint8).reshape(-1, 8)
    image[at[relatives, None] + np.arange(4)] = distances[relatives].astype("<i4").view(np.uint8).reshape(-1, 4)


def _make_executable(address: int, size: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(size), mmap.PROT_READ | mmap.PROT_EXEC):
        raise KernelError(f"this system forbids making code at run time (error {ctypes.get_errno()})")
