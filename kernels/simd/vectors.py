"""Vector registers as Numba values.

A `Vector` is a Numba type whose data model is an LLVM vector: a value of it lives in registers, and LLVM splits it
where the machine's registers are narrower than 16 lanes. So kernels are written once, over 16 virtual lanes, and
their float results do not depend on the width of the real ones.

`operation` turns a function that emits LLVM instructions into something a kernel can call.
"""

import inspect
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.datamodel import models, register_default
from numba.extending import intrinsic

from edgellm.kernels.simd.selection import selected

LANES = 16

I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
F16, F32 = ir.HalfType(), ir.FloatType()


class Vector(types.Type):
    """`lanes` elements of one LLVM type."""

    def __init__(self, name: str, element: ir.Type, lanes: int) -> None:
        self.llvm = ir.VectorType(element, lanes)
        super().__init__(name=name)


@register_default(Vector)
class VectorModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Vector) -> None:
        super().__init__(dmm, fe_type, fe_type.llvm)


u8x64 = Vector("u8x64", I8, 64)  # 16 lanes of 4 bytes: the operands of a dot product
i32x16 = Vector("i32x16", I32, LANES)
f32x16 = Vector("f32x16", F32, LANES)
mask16 = Vector("mask16", I1, LANES)

address = types.int64


def operation(result: types.Type, *arguments: types.Type) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A kernel instruction: the decorated function gets the IR builder and LLVM values, and returns an LLVM value.

    For a void result it returns nothing.
    """

    def decorate(emit: Callable[..., Any]) -> Callable[..., Any]:
        def typed(typing_context: Any, *args: Any) -> Any:
            def codegen(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> Any:
                value = emit(builder, *values)
                return context.get_dummy_value() if result is types.void else value

            return result(*arguments), codegen

        # Numba matches arguments by the declared ones, without the typing context, which stands for the builder here.
        names = list(inspect.signature(emit).parameters.values())
        typed.__signature__ = inspect.Signature(names)  # type: ignore[attr-defined]
        typed.__name__ = emit.__name__
        typed.__doc__ = emit.__doc__
        defined: Callable[..., Any] = intrinsic(typed)
        return defined

    return decorate


def splat(b: ir.IRBuilder, scalar: ir.Value, lanes: int = LANES) -> ir.Value:
    """Every lane holds the scalar; folds into an embedded broadcast where the scalar was just loaded."""
    undefined = ir.Constant(ir.VectorType(scalar.type, lanes), ir.Undefined)
    first = b.insert_element(undefined, scalar, I32(0))
    return b.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(I32, lanes), [0] * lanes))


def constant(vector: ir.VectorType, value: float) -> ir.Constant:
    return ir.Constant(vector, [value] * vector.count)


def shuffle(b: ir.IRBuilder, v: ir.Value, lanes: list[int]) -> ir.Value:
    """The named lanes of v, in that order."""
    return b.shuffle_vector(v, ir.Constant(v.type, ir.Undefined), ir.Constant(ir.VectorType(I32, len(lanes)), lanes))


def call(b: ir.IRBuilder, name: str, result: ir.Type, *values: ir.Value) -> ir.Value:
    """A call of an LLVM intrinsic or C function by name."""
    function_type = ir.FunctionType(result, [value.type for value in values])
    function = b.module.globals.get(name) or ir.Function(b.module, function_type, name)
    return b.call(function, values)


def fused(b: ir.IRBuilder, x: ir.Value, y: ir.Value, z: ir.Value) -> ir.Value:
    """x * y + z of 16 floats, rounded once; WebAssembly promises that only where the processor below can."""
    if selected().isa != "wasm-simd":
        return call(b, "llvm.fma.v16f32", f32x16.llvm, x, y, z)
    quarters = [[shuffle(b, v, list(range(at, at + 4))) for v in (x, y, z)] for at in range(0, LANES, 4)]
    return joined(b, [call(b, "llvm.wasm.relaxed.madd.v4f32", part[0].type, *part) for part in quarters])


def joined(b: ir.IRBuilder, parts: list[ir.Value]) -> ir.Value:
    """Vectors of one width, 2^n of them, side by side."""
    while len(parts) > 1:
        lanes = ir.Constant(ir.VectorType(I32, 2 * parts[0].type.count), list(range(2 * parts[0].type.count)))
        parts = [b.shuffle_vector(x, y, lanes) for x, y in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def pointer(b: ir.IRBuilder, where: ir.Value, pointee: ir.Type) -> ir.Value:
    return b.inttoptr(where, pointee.as_pointer())


__all__ = ["LANES", "Vector", "address", "call", "constant", "f32x16", "fused", "i32x16", "joined", "mask16",
           "operation", "pointer", "selected", "shuffle", "splat", "u8x64"]  # fmt: skip
