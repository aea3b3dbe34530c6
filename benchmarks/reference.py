"""Holds a model against its reference: token ids, greedy text and perplexity in float32 arithmetic.

Run:  python benchmarks/reference.py MODEL REFERENCE_FOLDER TEXT

REFERENCE_FOLDER holds reference.json (cases with text, ids, greedy_ids and greedy_margins, and the perplexity on TEXT).
"""

import json
import sys
from pathlib import Path
from typing import Any

import edgellm
from edgellm.apps import perplexity

NEAR_TIE = 0.35  # a margin of logits that rounding activations to INT8 may turn


def compare(model: edgellm.Model, case: dict[str, Any]) -> str:
    """What became of a case; greedy tokens must agree as long as the reference's choice was clear."""
    if model.tokenize(case["text"], special=True) != case["ids"]:
        return "FAILED: other token ids"
    if case["messages"] and model.render(case["messages"]) != case["text"]:
        return "FAILED: another prompt"
    wanted = case["greedy_ids"]
    stream = model.generate(case["ids"], edgellm.SamplingParams(max_tokens=len(wanted)))
    found = [piece.token_id for piece in stream]
    first = next((i for i, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b), None)
    if first is None:
        return f"equal, {len(wanted)} tokens"
    margin = case["greedy_margins"][first]
    verdict = "a near tie flipped" if margin <= NEAR_TIE else "FAILED"
    return f"{verdict} at token {first} of {len(wanted)}, where the reference's margin was {margin}"


def main(name: str, folder: str, text: str) -> None:
    reference = json.loads((Path(folder) / "reference.json").read_text())
    with edgellm.load(name) as model:
        verdicts = [compare(model, case) for case in reference["cases"]]
        for case, verdict in zip(reference["cases"], verdicts, strict=True):
            sys.stdout.write(f"{case['text'][-40:]!r}: {verdict}\n")
        wanted = reference["perplexity"]
        ids = model.tokenize(Path(text).read_text(encoding="utf-8"), special=True)[: wanted["tokens"] + 1]
        context = wanted["context"]
        stride = wanted["stride"]
        found = perplexity.measure(model.logits, ids, context=context, stride=stride, progress=lambda done, total: None)
        change = found.perplexity / wanted["perplexity"] - 1
        sys.stdout.write(f"perplexity {found.perplexity:.4f}, reference {wanted['perplexity']:.4f}: {change:+.3%}\n")
    sys.exit(any(verdict.startswith("FAILED") for verdict in verdicts) or abs(change) > 0.005)


if __name__ == "__main__":
    main(*sys.argv[1:])
