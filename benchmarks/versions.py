"""Two versions of edgellm on one machine, in turn: is the second slower than the first, and by how much?

Run:  python benchmarks/versions.py FIRST/.venv/bin SECOND/.venv/bin MODEL [--rounds 7] [--prompt 512] [--generate 128]

Each folder holds the programs of an environment in which a version is installed. A round is one `edgellm bench` and
some starts of `edgellm run` of each, the first version first in every other round. Ratios are of the second version to
the first: their median over the rounds, and the least and greatest. The machine should have nothing else to do.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

STARTS = 5  # of `edgellm run` in a round
PROMPT = "The history of the lighthouse at the end of the long pier begins with a"
FIGURES = {
    "prefill": ("prefill_tokens_per_second", "tokens/s"),
    "decode": ("decode_tokens_per_second", "tokens/s"),
    "first token": ("first_token_ms", "ms"),
    "peak memory": ("peak_rss_bytes", "bytes"),
}


def bench(programs: Path, model: str, prompt: int, generate: int) -> dict[str, float]:
    command = [programs / "edgellm", "bench", model, "--json", "--repeat", "3"]
    command += ["--prompt", str(prompt), "--generate", str(generate)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {name: float(found[key]) for name, (key, _) in FIGURES.items() if key in found}


def start_up(programs: Path, model: str) -> float:
    """Milliseconds from starting the process to its end after one token: the least of some."""
    command = [programs / "edgellm", "run", model, "--raw", "-p", PROMPT, "--max-tokens", "1", "--no-prefix-cache"]
    taken = []
    for _ in range(STARTS):
        begin = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        taken.append(time.perf_counter() - begin)
    return 1000 * min(taken)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--generate", type=int, default=128)
    args = parser.parse_args()
    versions = (args.first, args.second)
    rounds: list[list[dict[str, float]]] = []
    for number in range(args.rounds + 1):
        found: dict[Path, dict[str, float]] = {}
        for programs in versions if number % 2 else versions[::-1]:
            figures = bench(programs, args.model, args.prompt, args.generate)
            found[programs] = figures | {"start-up": start_up(programs, args.model)}
        if number:  # the first round compiles kernels and reads files
            rounds.append([found[programs] for programs in versions])
    for name in rounds[0][0]:
        first, second = ([figures[which][name] for figures in rounds] for which in (0, 1))
        ratios = sorted(b / a for a, b in zip(first, second, strict=True))
        unit = FIGURES.get(name, ("", "ms"))[1]
        sys.stdout.write(
            f"{name:12} {statistics.median(first):14.1f} {statistics.median(second):14.1f} {unit:9} "
            f"{statistics.median(ratios):.3f} ({ratios[0]:.3f}-{ratios[-1]:.3f})\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
