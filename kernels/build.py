"""Kernels ahead of time, for a program that carries them: `python -m edgellm.kernels.build FOLDER [LEVEL ...]`.

Each level of x86 becomes a file per unit that `jit.load` takes where there is no compiler, for any processor that has
the level.
"""

import sys
from argparse import ArgumentParser
from pathlib import Path

from edgellm.errors import KernelError
from edgellm.kernels import jit, objects
from edgellm.kernels.targets import X86_LEVELS, generic_target, host_target
from edgellm.kernels.units import own_units

LEVELS = (*X86_LEVELS, "plain")


def build(folder: Path, level: str, progress: jit.Progress | None = None) -> list[Path]:
    """The files of a level, compiled unless they are there; those of older sources go. Errors: KernelError."""
    target = generic_target(level, host_target().triple)
    units = own_units()
    paths = {unit: folder / objects.name_of(unit, target) for unit in units}
    missing = [unit for unit, path in paths.items() if objects.read(path) is None]
    if missing:
        jit.compile_into(folder, target, missing, progress=progress)
    for unit, path in paths.items():
        for other in folder.glob(f"{unit.name}-{level}-{'[0-9a-f]' * objects.IDENTITY_DIGITS}.o"):
            if other != path:
                other.unlink()
    objects.write_sources(folder, units)
    return list(paths.values())


def main() -> int:
    parser = ArgumentParser(prog="python -m edgellm.kernels.build", description="Compile kernels ahead of time.")
    parser.add_argument("folder", type=Path, help="where the files go")
    parser.add_argument("levels", nargs="*", metavar="LEVEL", help=f"of {', '.join(LEVELS)}; default: all")
    args = parser.parse_args()
    try:
        for level in args.levels or LEVELS:
            for path in build(args.folder, level):
                sys.stdout.write(f"{path}\n")
            sys.stdout.flush()
    except KernelError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
