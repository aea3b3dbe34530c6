"""The target that this process compiles kernels for.

Kernels are compiled in a process of their own, one target each (see compile.py): the target is chosen once, before
any kernel module is imported, because the shapes of register tiles are compile-time constants. Only the modules that
cpu/probes.py imports are there earlier: they make tiles of any shape.
"""

from dataclasses import replace

from edgellm.kernels.targets import Choice, Target

_selected: list[Target] = []


def select(target: Target) -> None:
    """Choose the target; a process may do so once."""
    assert not _selected, "a process compiles kernels for one target"
    _selected.append(target)


def settle(choice: Choice) -> None:
    """Go on with what was measured, before any module is imported that has its shapes from it."""
    _selected[:] = [replace(selected(), measured=choice)]


def selected() -> Target:
    assert _selected, "kernel modules are imported by compile.py only, after select()"
    return _selected[0]
