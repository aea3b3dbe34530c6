"""Numba kernels to object files with C entry points, for any target.

Run as a program, in a process of its own: `python -m edgellm.kernels.compile FOLDER TARGET UNITS [tune]`, the target
and the units, [[name, source], ..], as JSON. It leaves <unit>.o in the folder, and tuned.json where it tunes, and
prints a line `done/total name` per kernel. Numba's one CPU target is replaced before any kernel is imported, which is
why a process compiles for one target, and why the process that runs models never does it itself.
"""

import importlib.util
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import compiler, cpu
from numba.core.codegen import AOTCodeLibrary, AOTCPUCodegen
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target

from edgellm.kernels import objects
from edgellm.kernels.jit import Library, Progress
from edgellm.kernels.objects import KernelObject
from edgellm.kernels.simd import selection
from edgellm.kernels.targets import Target, from_json
from edgellm.kernels.tune import choose
from edgellm.kernels.units import Unit

Entries = dict[str, Callable[..., None]]


class Compiled(NamedTuple):
    """Kernels as one LLVM module, and the machine to emit it with."""

    names: tuple[str, ...]
    module: Any
    machine: Any

    def emit(self) -> KernelObject:
        return KernelObject(selection.selected(), self.names, self.machine.emit_object(self.module))


def _silent(done: int, total: int, name: str) -> None:
    pass


class _NoEngine:
    """Stands where Numba keeps its in-process linker: nothing that is compiled here runs here."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None


class _Library(AOTCodeLibrary):
    """A function with all that it calls, optimized where it is an entry and not at every level of calls once more."""

    def _optimize_final_module(self) -> None:
        pass

    def optimize(self) -> None:
        super()._optimize_final_module()


class _Codegen(AOTCPUCodegen):
    """Numba's code generator with a target machine of our choice."""

    _library_class = _Library

    def _init(self, llvm_module: Any) -> None:
        target = selection.selected()
        self._tm_features = target.features
        self._tm = llvm.Target.from_triple(target.triple).create_target_machine(
            cpu=target.cpu, features=target.features, opt=3, reloc="pic", codemodel="default"
        )
        self._target_data = self._tm.target_data
        self._data_layout = str(self._target_data)
        self._loopvect, self._opt_level = False, 0
        self._engine = _NoEngine()

    def _create_empty_module(self, name: str) -> ir.Module:
        module = ir.Module(name.replace("\n", " "))
        module.triple = selection.selected().triple
        if self._data_layout:  # unknown while the base class starts up
            module.data_layout = self._data_layout
        return module

    def _get_host_cpu_name(self) -> str:
        return selection.selected().cpu


class _Context(cpu.CPUContext):
    def init(self) -> None:
        super().init()
        self._internal_codegen = _Codegen("edgellm")

    def get_executable(self, library: Any, fndesc: Any, env: Any) -> object:
        """What Numba keeps as the callable of a compiled function: only its identity as a built-in is ever used."""
        unique: list[object] = []
        return unique.append


def install(target: Target) -> _Context:
    """Make `target` the only CPU target of this process."""
    # Tiles are tuples of registers, indexed by loops that must be unrolled whole: LLVM's own limit stops at 8 x 2.
    llvm.set_option("edgellm", "-unroll-threshold=4000")
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    selection.select(target)
    context = _Context(cpu_target.typing_context, "cpu")
    cpu_target.__dict__["_toplevel_target_context"] = context
    return context


def _compile_entry(context: _Context, name: str, function: Callable[..., None]) -> Any:
    """A module with the C function `name`, void of as many int64 as the kernel takes, which calls the kernel."""
    function = getattr(function, "py_func", function)
    arguments = (types.int64,) * len(inspect.signature(function).parameters)
    flags = compiler.Flags()
    flags.no_compile = True
    flags.nrt = False
    flags.error_model = "numpy"
    flags.no_cpython_wrapper = flags.no_cfunc_wrapper = True
    typing = cpu_target.typing_context
    body = compiler.compile_extra(typing, context, function, arguments, types.void, flags, {})
    library = context.codegen().create_library(name)
    module = library.create_ir_module(name)
    words = [ir.IntType(64)] * len(arguments)
    entry = ir.Function(module, ir.FunctionType(ir.VoidType(), words), name)
    builder = ir.IRBuilder(entry.append_basic_block())
    kernel = context.declare_function(module, body.fndesc)
    context.call_conv.call_function(builder, kernel, types.void, arguments, entry.args)
    builder.ret_void()
    library.add_ir_module(module)
    library.add_linking_library(body.library)
    library._ensure_finalized()
    library.optimize()
    # Every kernel brings the same helpers, and a global of Numba's that nobody reads; neither may clash at the end.
    text = re.sub(r"= common (dso_local )?(local_unnamed_addr )?global", "= internal global", library.get_llvm_str())
    return llvm.parse_assembly(text)


def _link(context: _Context, entries: Entries, report: Callable[[str], None]) -> Compiled:
    """All entries; each is reported before it is compiled."""
    whole = None
    for name, function in entries.items():
        report(name)
        module = _compile_entry(context, name, function)
        for inner in module.functions:
            if not inner.is_declaration and inner.name != name:
                inner.linkage = "internal"
        if whole is None:
            whole = module
        else:
            whole.link_in(module)
    assert whole is not None
    whole.verify()
    return Compiled(tuple(entries), whole, context.codegen()._tm)


def _refresh(context: _Context) -> None:
    """Let Numba know the operations of modules imported since."""
    cpu_target.typing_context.refresh()
    context.refresh()


def entries_of(unit: Unit) -> Entries:
    """What a unit's source exports, by name."""
    spec = importlib.util.spec_from_file_location(f"edgellm_unit_{unit.name}", unit.source)
    assert spec is not None and spec.loader is not None, unit
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    entries: Entries = module.entry_points()
    return entries


def compile_units(
    target: Target, units: Iterable[Unit], progress: Progress = _silent, *, tune: bool = False
) -> Iterator[tuple[Unit, Compiled]]:
    """The units' kernels for `target`, one unit after the other.

    With `tune`, what is fastest on this processor is measured first, and selection.selected() says what that was.
    """
    with global_compiler_lock:
        context = install(target)
        if tune:
            progress(0, 1, "tuning")
            selection.settle(choose(target, Library(target, [compile_probes(context, target)])))
        entries = {unit: entries_of(unit) for unit in units}
        _refresh(context)
        total = sum(map(len, entries.values()))
        names = list[str]()

        def report(name: str) -> None:
            progress(len(names), total, name)
            names.append(name)

        for unit, found in entries.items():
            yield unit, _link(context, found, report)
        progress(total, total, "done")


def compile_probes(context: _Context, target: Target) -> KernelObject:
    """The small kernels that tuning times."""
    from edgellm.kernels.cpu.probes import probes

    entries = probes(target)
    _refresh(context)
    return _link(context, entries, lambda name: None).emit()


def main() -> None:
    folder = Path(sys.argv[1])
    target = from_json(sys.argv[2])
    tune = sys.argv[4:] == ["tune"]
    units = [Unit(name, Path(source)) for name, source in json.loads(sys.argv[3])]

    def report(done: int, total: int, name: str) -> None:
        sys.stdout.write(f"{done}/{total} {name}\n")
        sys.stdout.flush()

    for unit, kernels in compile_units(target, units, report, tune=tune):
        objects.write(folder / f"{unit.name}.o", kernels.emit())
    if tune:
        (folder / "tuned.json").write_text(selection.selected().to_json())


if __name__ == "__main__":
    main()
