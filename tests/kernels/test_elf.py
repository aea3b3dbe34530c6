"""Objects put into memory by our loader do what they were compiled to do; those that it does not know are refused."""

import ctypes
import math
from collections.abc import Callable
from pathlib import Path

import llvmlite.binding as llvm
import pytest

from edgellm.errors import KernelError
from edgellm.kernels import elf

pytestmark = pytest.mark.skipif(not elf.RUNS_HERE, reason="the loader is for x86-64 Linux")

Function = Callable[[int], int]


def compiled(text: str, triple: str = "") -> bytes:
    """LLVM's assembly language to an object file, position-independent as kernels are."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    target = llvm.Target.from_triple(triple or llvm.get_process_triple())
    machine = target.create_target_machine(reloc="pic", codemodel="default")
    code: bytes = machine.emit_object(llvm.parse_assembly(text))
    return code


def entry(image: elf.Image, name: str = "entry") -> Function:
    function: Function = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(image.addresses[name])
    return function


def test_constants_and_jump_tables_are_found() -> None:
    cases = "".join(f"i64 {number}, label %case{number} " for number in range(8))
    blocks = "".join(f"case{number}: ret i64 {number * number + 100}\n" for number in range(8))
    values = ", ".join(f"i64 {10**number}" for number in range(8))
    image = elf.Image(
        compiled(f"""
        @values = internal constant [8 x i64] [{values}], align 64
        define i64 @entry(i64 %x) {{
            %place = getelementptr [8 x i64], ptr @values, i64 0, i64 %x
            %value = load volatile i64, ptr %place
            ret i64 %value
        }}
        define i64 @chosen(i64 %x) {{
            switch i64 %x, label %other [ {cases} ]
            {blocks}
            other: ret i64 -1
        }}""")
    )
    assert [entry(image)(number) for number in range(8)] == [10**number for number in range(8)]
    chosen = entry(image, "chosen")
    assert [chosen(number) for number in range(9)] == [*(number**2 + 100 for number in range(8)), -1]


def test_variables_begin_as_written_and_keep_what_is_stored() -> None:
    image = elf.Image(
        compiled("""
        @zero = internal global i64 0
        @seven = internal global i64 7
        define i64 @entry(i64 %x) {
            %zero = load volatile i64, ptr @zero
            %seven = load volatile i64, ptr @seven
            %sum = add i64 %zero, %x
            store volatile i64 %sum, ptr @zero
            store volatile i64 %sum, ptr @seven
            %result = mul i64 %sum, %seven
            ret i64 %result
        }""")
    )
    function = entry(image)
    assert [function(1), function(2), function(3)] == [1 * 7, 3 * 1, 6 * 3]


def test_pointers_in_tables_are_absolute() -> None:
    image = elf.Image(
        compiled("""
        @functions = internal constant [2 x ptr] [ptr @double, ptr @triple]
        define internal i64 @double(i64 %x) noinline { %y = mul i64 %x, 2 ret i64 %y }
        define internal i64 @triple(i64 %x) noinline { %y = mul i64 %x, 3 ret i64 %y }
        define i64 @entry(i64 %x) {
            %which = and i64 %x, 1
            %place = getelementptr [2 x ptr], ptr @functions, i64 0, i64 %which
            %function = load volatile ptr, ptr %place
            %y = call i64 %function(i64 %x)
            ret i64 %y
        }""")
    )
    assert [entry(image)(number) for number in (4, 5)] == [8, 15]


def test_c_functions_are_called() -> None:
    image = elf.Image(
        compiled("""
        declare i64 @labs(i64)
        declare double @cos(double)
        define i64 @entry(i64 %x) {
            %y = call i64 @labs(i64 %x)
            ret i64 %y
        }
        define double @cosine(double %x) {
            %y = call double @cos(double %x)
            %z = fadd double %y, 1.0
            ret double %z
        }""")
    )
    assert entry(image)(-5) == 5
    cosine = ctypes.CFUNCTYPE(ctypes.c_double, ctypes.c_double)(image.addresses["cosine"])
    assert cosine(0.5) == math.cos(0.5) + 1


def rights(address: int) -> str:
    """What a page of this process may be used for, as "r-xp"."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, found = line.split()[:2]
        first, end = (int(bound, 16) for bound in span.split("-"))
        if first <= address < end:
            return found
    raise AssertionError(f"nothing is mapped at {address:#x}")


def test_code_cannot_be_written_nor_data_run() -> None:
    image = elf.Image(
        compiled("""
        @data = global i64 0
        define i64 @entry(i64 %x) { ret i64 %x }""")
    )
    assert rights(image.addresses["entry"]) == "r-xp"
    assert rights(image.addresses["data"]) == "rw-p"


RETURNS = "define i64 @entry(i64 %x) { ret i64 %x }"
READS = """
    @environ = {} global i64 {}
    define i64 @entry(i64 %x) {{
        %y = load i64, ptr @environ
        ret i64 %y
    }}"""
ABSENT = """
    declare i64 @no_such_function(i64)
    define i64 @entry(i64 %x) {
        %y = call i64 @no_such_function(i64 %x)
        ret i64 %y
    }"""


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (lambda: b"", "not an ELF object"),
        (lambda: b"no object at all, though long enough to have a header of 64 bytes", "not an ELF object"),
        (lambda: compiled(RETURNS, "aarch64-unknown-linux-gnu"), "not an ELF object for x86-64"),
        (lambda: compiled(ABSENT), "no_such_function"),
        (lambda: compiled(READS.format("external dso_local", "")), "unknown kind"),  # of C, as if it lay near
        (lambda: compiled(READS.format("weak", "0")), "unknown kind"),  # by a table of addresses
    ],
)
def test_what_it_does_not_know_is_refused(code: Callable[[], bytes], message: str) -> None:
    with pytest.raises(KernelError, match=message):
        elf.Image(code())
