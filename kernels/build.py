"""Kernels ahead of time, for a program that carries them: `python -m edgellm.kernels.build FOLDER [LEVEL ...]`.

Each level of x86 becomes a file that `jit.load` takes where there is no compiler, for any processor that has the level.
"""

import sys
from argparse import ArgumentParser
from pathlib import Path

from edgellm.errors import KernelError
from edgellm.kernels import jit, objects
from edgellm.kernels.targets import X86_LEVELS, generic_target, host_target

LEVELS = (*X86_LEVELS, "plain")


def build(folder: Path, level: str, progress: jit.Progress | None = None) -> Path:
    """The file of a level, compiled unless it is there; those of older sources go. Errors: KernelError."""
    target = generic_target(level, host_target().triple)
    path = folder / objects.name_of(target)
    if objects.read(path) is None:
        jit.compile_into(path, target, progress=progress)
    for other in folder.glob(f"kernels-{level}-{'[0-9a-f]' * objects.IDENTITY_DIGITS}.o"):
        if other != path:
            other.unlink()
    return path


def main() -> int:
    parser = ArgumentParser(prog="python -m edgellm.kernels.build", description="Compile kernels ahead of time.")
    parser.add_argument("folder", type=Path, help="where the files go")
    parser.add_argument("levels", nargs="*", metavar="LEVEL", help=f"of {', '.join(LEVELS)}; default: all")
    args = parser.parse_args()
    try:
        for level in args.levels or LEVELS:
            sys.stdout.write(f"{build(args.folder, level)}\n")
            sys.stdout.flush()
    except KernelError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
