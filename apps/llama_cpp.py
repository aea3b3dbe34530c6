"""llama.cpp on the same work, measured the same way: the other side of `edgellm bench --against`.

`python -m edgellm.apps.llama_cpp FILE PROMPT GENERATE THREADS`, a process of its own, prints one JSON object. It uses
the calls of llama-cpp-python that are llama.cpp's own, and feeds given tokens, so that nothing but decoding is on its
clock (our side samples and streams as well).
"""

import json
import random
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

from edgellm.apps.speed import Speed, peak_rss_bytes
from edgellm.errors import LlamaCppError, MissingExtraError, OptionError

WARM_UP_TOKENS = 8
ROOM = 64  # tokens of context beyond what is measured


@dataclass(frozen=True)
class PeerResult:
    """One repeat."""

    model: str
    speed: Speed
    peak_rss_bytes: int


def measure_peer(gguf: Path, num_prompt_tokens: int, num_tokens: int, threads: int) -> PeerResult:
    """Measure llama.cpp once, in a new process. Errors: MissingExtraError, OptionError, LlamaCppError."""
    if find_spec("llama_cpp") is None:
        raise MissingExtraError("llama-cpp-python is not installed; `pip install 'edgellm[bench]'` builds it")
    if not gguf.is_file():
        raise OptionError(f"--against {gguf}: there is no such file; name a GGUF file for llama.cpp")
    command = [sys.executable, "-P", "-m", "edgellm.apps.llama_cpp", str(gguf)]
    command += [str(number) for number in (num_prompt_tokens, num_tokens, threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise LlamaCppError(f"llama.cpp failed on {gguf}: {last[0]}")
    found = json.loads(done.stdout)
    return PeerResult(found["model"], Speed(**found["speed"]), found["peak_rss_bytes"])


def _measure(gguf: Path, num_prompt_tokens: int, num_tokens: int, threads: int) -> PeerResult:
    import llama_cpp

    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(str(gguf).encode(), llama_cpp.llama_model_default_params())
    if not model:
        raise LlamaCppError("the file does not load; get it again, or convert it with a current llama.cpp")
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = num_prompt_tokens + num_tokens + ROOM
    params.n_batch = num_prompt_tokens + ROOM
    params.n_threads = params.n_threads_batch = threads
    context = llama_cpp.llama_init_from_model(model, params)
    vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    draw = random.Random(0)

    def decode(count: int) -> float:
        """Seconds that it takes to decode as many random tokens in one call."""
        tokens = (llama_cpp.llama_token * count)(*(draw.randrange(vocabulary) for _ in range(count)))
        batch = llama_cpp.llama_batch_get_one(tokens, count)
        start = time.perf_counter()
        if status := llama_cpp.llama_decode(context, batch):
            raise LlamaCppError(f"llama_decode gave {status}")
        llama_cpp.llama_synchronize(context)
        return time.perf_counter() - start

    decode(WARM_UP_TOKENS)
    decode(1)
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
    prefill = decode(num_prompt_tokens)
    further = sum(decode(1) for _ in range(num_tokens - 1))
    speed = Speed(num_prompt_tokens / prefill, (num_tokens - 1) / further, prefill * 1e3)
    return PeerResult(gguf.name, speed, peak_rss_bytes())


def main() -> None:
    path, *numbers = sys.argv[1:]
    sys.stdout.write(json.dumps(asdict(_measure(Path(path), *(int(number) for number in numbers)))))


if __name__ == "__main__":
    main()
