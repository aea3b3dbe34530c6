"""Runs the sample kernel on rows of logits, as a step does."""

import numpy as np

from edgellm.backends.cpu.sampler import Sampler
from edgellm.engine.params import SamplingParams
from edgellm.kernels import ops
from edgellm.kernels.jit import Library
from edgellm.memory.buffers import address, aligned_zeros


def run_sample(library: Library, samplers: list[int], logits: np.ndarray, threads: int = 1) -> None:
    """For each row of logits [rows][V] the sampler record at an address; the kernel changes a copy of the logits."""
    rows, vocabulary = logits.shape
    table = aligned_zeros((rows, -(-vocabulary // 32) * 32), np.float32)
    table[:, :vocabulary] = logits
    addresses = np.array(samplers, np.int64)
    words = dict.fromkeys(ops.STEP.names, 0) | {"logit_count": rows, "samplers": address(addresses)}
    record = ops.SAMPLE.pack(kernel=0, barrier=0, logits=address(table), stride=table.shape[1], vocabulary=vocabulary)
    for thread in range(threads):
        library.entry("sample")(address(record), address(ops.STEP.pack(**words)), thread, threads)


def records(sampler: Sampler, drafted: list[int] | None = None, masks: np.ndarray | None = None) -> list[int]:
    """Addresses of a sampler's records, made ready."""
    sampler.prepare(drafted or [], masks)
    return sampler.records


def draw(library: Library, sampler: Sampler, logits: np.ndarray) -> int:
    """One token from logits [V]."""
    run_sample(library, records(sampler), logits[None])
    (token,) = sampler.accept()
    return token


def sampler_of(vocabulary: int, prompt: list[int] | None = None, **options: object) -> Sampler:
    return Sampler(SamplingParams(**options), vocabulary, prompt or [])  # type: ignore[arg-type]


def random_logits(seed: int, vocabulary: int) -> np.ndarray:
    """As a model gives them: most are small, a few stand out."""
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal(vocabulary) * rng.uniform(0.5, 3)
    logits[rng.integers(0, vocabulary, 8)] += rng.uniform(0, 8, 8)
    return logits.astype(np.float32)
