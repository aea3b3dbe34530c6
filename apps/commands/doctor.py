"""edgellm doctor: what edgellm finds on this machine."""

import platform
import sys
from argparse import ArgumentParser, Namespace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from edgellm.apps.loading import load_kernels
from edgellm.apps.options import add_json
from edgellm.apps.tables import size, write_facts
from edgellm.apps.terminal import write_json
from edgellm.inspect import bandwidth
from edgellm.kernels import jit
from edgellm.kernels.host import known_host
from edgellm.processors import available_processors
from edgellm.store import Store, cache_folder

PACKAGES = ("edgellm", "numpy", "numba", "llvmlite")
OPTIONAL_PACKAGES = ("huggingface_hub", "llama-cpp-python")


def add_arguments(parser: ArgumentParser) -> None:
    add_json(parser)


def main(args: Namespace) -> int:
    facts = examine()
    if args.json:
        write_json(facts)
    else:
        _show(facts)
    return 0


def examine() -> dict[str, Any]:
    kernels = cache_folder() / "kernels"
    target = known_host(kernels)
    processors = available_processors()
    memory = psutil.virtual_memory()
    compiled = jit.is_cached(kernels)
    library = load_kernels()
    return {
        "cpu": _cpu_name(),
        "llvm_cpu": target.cpu,
        "isa": target.isa,
        "threads": processors.count,
        "threads_reason": processors.reason,
        "memory_bytes": memory.total,
        "available_memory_bytes": memory.available,
        "read_bandwidth_bytes_per_second": bandwidth.measure(library, processors.count, processors.count),
        "models_folder": str(Store().models_folder),
        "models": len(Store().names()),
        "cache_folder": str(cache_folder()),
        "kernels_were_compiled": compiled,
        "kernels_isa": library.target.isa,
        "kernels_choice": str(library.target.choice),
        "kernels_choice_was_measured": library.target.measured is not None,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "optional_packages": {name: _version(name) for name in OPTIONAL_PACKAGES},
    }


def _show(facts: dict[str, Any]) -> None:
    write_facts(
        {
            "processor": f"{facts['cpu']} ({facts['llvm_cpu']})",
            "instruction set": facts["isa"],
            "threads": f"{facts['threads']}: {facts['threads_reason']}",
            "memory": f"{size(facts['memory_bytes'])}, {size(facts['available_memory_bytes'])} of it available",
            "read bandwidth": f"{size(facts['read_bandwidth_bytes_per_second'])}/s with {facts['threads']} threads",
            "models": f"{facts['models']} in {facts['models_folder']}",
            "cache": facts["cache_folder"],
            "kernels": "were compiled before" if facts["kernels_were_compiled"] else "compiled just now, once",
            "tuning": f"{facts['kernels_choice']}, {'measured' if facts['kernels_choice_was_measured'] else 'by rule'}",
            "system": facts["platform"],
            "python": facts["python"],
            **{name: found or "not installed" for name, found in facts["packages"].items()},
            **{name: found or "not installed (optional)" for name, found in facts["optional_packages"].items()},
        }
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_name() -> str:
    """As the maker calls it, as far as the system tells."""
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
