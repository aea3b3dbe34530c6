"""What INT8 keys and values cost beside bf16: perplexity of texts, and how far the next token's distribution moves.

Run:  python benchmarks/kv_cache.py MODEL TEXT ...     scores the first 8,192 tokens of each as `edgellm eval` does

A difference of perplexities comes with its standard error over tokens, which for one text is as large as the
difference; the KL divergence (nats per token) has no such noise.
"""

import argparse
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import edgellm
from edgellm.apps.perplexity import windows

TOKENS, CONTEXT, STRIDE = 8192, 1024, 512
ROWS = 32  # turned into probabilities at a time


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def losses(bf16: edgellm.Model, int8: edgellm.Model, ids: list[int]) -> Iterator[np.ndarray]:
    """For every token but the first: its loss with bf16, its loss with INT8, the divergence before it."""
    for start, first in windows(len(ids), CONTEXT, STRIDE):
        window = ids[start : start + CONTEXT]
        both = [model.logits(window)[first:-1] for model in (bf16, int8)]
        followers = np.array(window[first + 1 :])
        for at in range(0, len(followers), ROWS):
            exact, other = (log_probabilities(logits[at : at + ROWS]) for logits in both)
            picked = np.arange(len(exact)), followers[at : at + ROWS]
            yield np.stack([-exact[picked], -other[picked], (np.exp(exact) * (exact - other)).sum(axis=1)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="name of a model, a packed file, or a GGUF file")
    parser.add_argument("texts", nargs="+", type=Path, help="files of UTF-8 text")
    options = parser.parse_args()
    name = options.model
    with (
        edgellm.load(name, context=CONTEXT, kv_cache_dtype="bf16") as bf16,
        edgellm.load(name, context=CONTEXT, kv_cache_dtype="int8") as int8,
    ):
        for text in options.texts:
            ids = bf16.tokenize(text.read_text(encoding="utf-8"))[:TOKENS]
            exact, other, divergence = np.concatenate(list(losses(bf16, int8, ids)), axis=1)
            change = np.mean(other - exact)
            error = np.std(other - exact) / math.sqrt(len(exact))
            sys.stdout.write(
                f"{text}: bf16 {math.exp(exact.mean()):.4f}, int8 {math.exp(other.mean()):.4f}, "
                f"{100 * math.expm1(change):+.2f} % +- {100 * error:.2f}, KL {divergence.mean():.5f}\n"
            )


if __name__ == "__main__":
    main()
