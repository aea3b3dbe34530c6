"""Loads, stores and atomics at raw addresses. Element types in names; all addresses are int64 byte addresses."""

import inspect
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from llvmlite.ir import IRBuilder as Builder
from numba import types

from edgellm.kernels.simd.vectors import (
    F16,
    F32,
    I8,
    I16,
    I32,
    I64,
    LANES,
    address,
    call,
    constant,
    f32x16,
    i32x16,
    operation,
    pointer,
    selected,
    splat,
    u8x64,
)

F32X16, I32X16 = f32x16.llvm, i32x16.llvm
I16X16, F16X16, I8X16 = (ir.VectorType(element, LANES) for element in (I16, F16, I8))


@operation(types.int64, address)
def load_i64(b: Builder, where: Any) -> Any:
    return b.load(pointer(b, where, I64), align=8)


@operation(types.void, address, types.int64)
def store_i64(b: Builder, where: Any, value: Any) -> None:
    b.store(value, pointer(b, where, I64), align=8)


@operation(types.int64, address)
def load_i32(b: Builder, where: Any) -> Any:
    return b.sext(b.load(pointer(b, where, I32), align=4), I64)


@operation(types.void, address, types.int64)
def store_i32(b: Builder, where: Any, value: Any) -> None:
    b.store(b.trunc(value, I32), pointer(b, where, I32), align=4)


@operation(types.int64, address)
def load_u8(b: Builder, where: Any) -> Any:
    return b.zext(b.load(pointer(b, where, I8)), I64)


@operation(types.int64, address)
def load_i8(b: Builder, where: Any) -> Any:
    return b.sext(b.load(pointer(b, where, I8)), I64)


@operation(types.float32, address)
def load_f32(b: Builder, where: Any) -> Any:
    return b.load(pointer(b, where, F32), align=4)


@operation(types.void, address, types.float32)
def store_f32(b: Builder, where: Any, value: Any) -> None:
    b.store(value, pointer(b, where, F32), align=4)


@operation(types.float32, types.int64)
def f32_from_bits(b: Builder, bits: Any) -> Any:
    """The float whose bits are the low half: how operands of operations carry floats."""
    return b.bitcast(b.trunc(bits, I32), F32)


@operation(i32x16, address)
def load_i32x16(b: Builder, where: Any) -> Any:
    return b.load(pointer(b, where, I32X16), align=4)


@operation(u8x64, address)
def load_u8x64(b: Builder, where: Any) -> Any:
    return b.load(pointer(b, where, u8x64.llvm), align=1)


@operation(u8x64, address)
def broadcast_4_bytes(b: Builder, where: Any) -> Any:
    """4 bytes repeated 16 times: the memory operand {1to16} of a dot product."""
    return b.bitcast(splat(b, b.load(pointer(b, where, I32), align=1)), u8x64.llvm)


@operation(i32x16, address)
def broadcast_i32(b: Builder, where: Any) -> Any:
    return splat(b, b.load(pointer(b, where, I32), align=4))


@operation(f32x16, address)
def broadcast_f32(b: Builder, where: Any) -> Any:
    return splat(b, b.load(pointer(b, where, F32), align=4))


@operation(f32x16, address)
def load_f32x16(b: Builder, where: Any) -> Any:
    return b.load(pointer(b, where, F32X16), align=4)


@operation(types.void, address, f32x16)
def store_f32x16(b: Builder, where: Any, v: Any) -> None:
    b.store(v, pointer(b, where, F32X16), align=4)


def _from_f16(b: Builder, halves: Any) -> Any:
    """16 f16, given as bits, as f32, exactly."""
    if selected().native_f16:
        return b.fpext(b.bitcast(halves, F16X16), F32X16)
    # Moving the fields into place leaves the exponent 112 too small, for subnormals as well.
    bits = b.zext(halves, I32X16)
    magnitude = b.shl(b.and_(bits, constant(I32X16, 0x7FFF)), constant(I32X16, 13))
    value = b.fmul(b.bitcast(magnitude, F32X16), constant(F32X16, 2.0**112))
    sign = b.shl(b.and_(bits, constant(I32X16, 0x8000)), constant(I32X16, 16))
    return b.bitcast(b.or_(b.bitcast(value, I32X16), sign), F32X16)


@operation(f32x16, address)
def load_f16x16(b: Builder, where: Any) -> Any:
    return _from_f16(b, b.load(pointer(b, where, I16X16), align=2))


@operation(types.float32, address)
def load_f16(b: Builder, where: Any) -> Any:
    return b.extract_element(_from_f16(b, splat(b, b.load(pointer(b, where, I16), align=2))), I32(0))


@operation(types.void, address, i32x16)
def store_i32x16(b: Builder, where: Any, v: Any) -> None:
    b.store(v, pointer(b, where, I32X16), align=4)


@operation(f32x16, address)
def load_i8x16(b: Builder, where: Any) -> Any:
    """16 signed bytes, as floats."""
    return b.sitofp(b.sext(b.load(pointer(b, where, I8X16), align=1), I32X16), F32X16)


@operation(types.int64, address)
def sum_of_16_bytes(b: Builder, where: Any) -> Any:
    """Of signed ones."""
    # The sum of unsigned bytes is one instruction of x86, psadbw.
    unsigned = b.zext(b.xor(b.load(pointer(b, where, I8X16), align=1), constant(I8X16, 128)), I32X16)
    return b.sext(b.sub(call(b, "llvm.vector.reduce.add.v16i32", I32, unsigned), I32(16 * 128)), I64)


@operation(i32x16, address)
def load_u8x16(b: Builder, where: Any) -> Any:
    """16 unsigned bytes, as integers."""
    return b.zext(b.load(pointer(b, where, I8X16), align=1), I32X16)


@operation(types.void, address, types.int64)
def store_i8(b: Builder, where: Any, value: Any) -> None:
    b.store(b.trunc(value, I8), pointer(b, where, I8))


@operation(types.void, address, i32x16)
def store_i8x16(b: Builder, where: Any, v: Any) -> None:
    """The low bytes of 16 integers."""
    b.store(b.trunc(v, I8X16), pointer(b, where, I8X16), align=1)


@operation(types.void, address, i32x16, types.int64)
def scatter_i8(b: Builder, where: Any, v: Any, stride: Any) -> None:
    """The low bytes of 16 integers, `stride` bytes apart."""
    low = b.trunc(v, I8X16)
    for lane in range(LANES):
        b.store(b.extract_element(low, I32(lane)), pointer(b, where, I8))
        where = b.add(where, stride)


@operation(types.void, address)
def prefetch(b: Builder, where: Any) -> None:
    """Ask for the cache line at an address, which may lie after the end of anything."""
    _prefetch(b, where, 3)


@operation(types.void, address)
def prefetch_l2(b: Builder, where: Any) -> None:
    """The same, no nearer than the second cache: for what is not needed soon."""
    _prefetch(b, where, 2)


def _prefetch(b: Builder, where: Any, locality: int) -> None:
    line = pointer(b, where, I8)
    name = "llvm.prefetch.p0"
    function_type = ir.FunctionType(ir.VoidType(), [line.type, I32, I32, I32])
    function = b.module.globals.get(name) or ir.Function(b.module, function_type, name)
    b.call(function, [line, I32(0), I32(locality), I32(1)])


@operation(types.int64, address)
def load_acquire(b: Builder, where: Any) -> Any:
    return b.load_atomic(pointer(b, where, I64), "acquire", 8)


@operation(types.void, address, types.int64)
def store_release(b: Builder, where: Any, value: Any) -> None:
    b.store_atomic(value, pointer(b, where, I64), "release", 8)


@operation(types.int64, address, types.int64)
def fetch_add(b: Builder, where: Any, value: Any) -> Any:
    return b.atomic_rmw("add", pointer(b, where, I64), value, "acq_rel")


@operation(types.void)
def pause(b: Builder) -> None:
    """Tell the processor that this thread spins."""
    triple = selected().triple
    if triple.startswith("x86_64"):
        call(b, "llvm.x86.sse2.pause", ir.VoidType())
    elif triple.startswith(("aarch64", "arm64")):
        call(b, "llvm.aarch64.hint", ir.VoidType(), I32(1))


@operation(types.void)
def forget_loads(b: Builder) -> None:
    """What is loaded after this is loaded once more, not kept from before, in registers or spilled; no instruction."""
    b.fence("acq_rel", "singlethread")


@operation(types.int64)
def cycles(b: Builder) -> Any:
    """The processor's clock, in ticks of its own."""
    return call(b, "llvm.readcyclecounter", I64)


@operation(types.void)
def yield_thread(b: Builder) -> None:
    """Give the processor to another thread that wants it."""
    call(b, selected().yield_symbol, I32)


def _make_call(count: int) -> Callable[..., None]:
    """A call of the kernel at an address, with so many int64 arguments."""

    def call_at(b: Builder, kernel: Any, *arguments: Any) -> None:
        b.call(pointer(b, kernel, ir.FunctionType(ir.VoidType(), [I64] * count)), arguments)

    names = ["b", "kernel", *(f"a{i}" for i in range(count))]
    call_at.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
    )
    made: Callable[..., None] = operation(types.void, address, *[types.int64] * count)(call_at)
    return made


call_4, call_7, call_8, call_10 = (_make_call(count) for count in (4, 7, 8, 10))
