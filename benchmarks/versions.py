"""Two versions of edgellm on one machine, in turn: is the second slower than the first, and by how much?

Run:  python benchmarks/versions.py FIRST/.venv/bin SECOND/.venv/bin MODEL [--rounds 100] [--starts 25]

Each folder holds the programs of an environment in which a version is installed. Both load the model and wait; in a
round each computes a prompt and an answer, some tenths of a second, and the one that goes first changes from round to
round. So a machine that becomes slower within seconds is slower for both. Then programs are started in turn. Ratios
are of the second version to the first, round by round: their median, and the quartiles. The machine should have
nothing else to do.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROMPT = "The history of the lighthouse at the end of the long pier begins with a"
# What a version runs: a line of standard input is a round, which it answers with a line of figures
CHILD = """
import json, random, resource, sys, time
import edgellm

model, prompt, answer = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
draw = random.Random(0)
with edgellm.load(model) as model:
    for _ in sys.stdin:
        ids = [draw.randrange(1000, 20000) for _ in range(prompt)]
        stops = {id_: -1e9 for id_ in model.tokenizer.stop_ids}
        params = edgellm.SamplingParams(max_tokens=answer + 1, logit_bias=stops, speculation="off")
        begin = time.perf_counter()
        stream = model.generate(ids, params)
        next(stream)
        first = time.perf_counter()
        for _ in stream:
            pass
        end = time.perf_counter()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(json.dumps({"prefill": first - begin, "decode": (end - first) / answer, "peak memory": peak}), flush=True)
"""
UNITS = {"prefill": ("ms", 1e3), "decode": ("ms a token", 1e3), "peak memory": ("MB", 1e-3), "start-up": ("ms", 1e3)}


class Version:
    """A version that has a model loaded."""

    def __init__(self, programs: Path, model: str, prompt: int, answer: int) -> None:
        self._programs = programs
        self._model = model
        command = [programs / "python", "-c", CHILD, model, str(prompt), str(answer)]
        # Elsewhere: in a checkout Python would take the edgellm that lies there
        self._child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tempfile.gettempdir()
        )

    def round(self) -> dict[str, float]:
        """Seconds of the prompt, seconds of a token of the answer, kilobytes at most so far."""
        assert self._child.stdin and self._child.stdout
        self._child.stdin.write("\n")
        self._child.stdin.flush()
        found: dict[str, float] = json.loads(self._child.stdout.readline())
        return found

    def close(self) -> None:
        self._child.communicate()

    def start(self) -> dict[str, float]:
        """Seconds from starting `edgellm run` to its end after one token."""
        # On standard input: older versions take no prompt in its place
        command = [self._programs / "edgellm", "run", self._model, "--raw", "--no-prefix-cache", "--max-tokens", "1"]
        begin = time.perf_counter()
        subprocess.run(command, input=PROMPT, check=True, stdout=subprocess.DEVNULL, text=True)
        return {"start-up": time.perf_counter() - begin}


def report(rounds: list[list[dict[str, float]]]) -> None:
    """A line for each figure: [rounds][version] -> figures."""
    for name in rounds[0][0]:
        first, second = ([figures[which][name] for figures in rounds] for which in (0, 1))
        low, median, high = statistics.quantiles([b / a for a, b in zip(first, second, strict=True)], n=4)
        unit, factor = UNITS[name]
        sys.stdout.write(
            f"{name:12} {factor * statistics.median(first):10.2f} {factor * statistics.median(second):10.2f} {unit:10} "
            f"{median:.3f} ({low:.3f}-{high:.3f}); least {factor * min(first):.2f} {factor * min(second):.2f}\n"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("programs", type=Path, nargs=2)
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--starts", type=int, default=25)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--answer", type=int, default=64)
    args = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # a start would be one of compiling modules
    versions = [Version(programs.absolute(), args.model, args.prompt, args.answer) for programs in args.programs]
    for what, count in ((Version.round, args.rounds), (Version.start, args.starts)):
        rounds = []
        for number in range(count + 2):
            found = {version: what(version) for version in versions[:: 1 if number % 2 else -1]}
            if number > 1:  # the first ones compile kernels and read files
                rounds.append([found[version] for version in versions])
        for version in versions if what is Version.round else ():
            version.close()
        report(rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
