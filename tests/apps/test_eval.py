"""edgellm eval on a tiny model equals the definition, taken from its logits."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from edgellm import Model
from tests.apps.conftest import Run


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("the thing in the other is on an island, the Ä said. " * 4, "utf-8")
    return path


def test_one_window(run: Run, tiny: str, tiny_model: Model, text: Path) -> None:
    ids = tiny_model.tokenize(text.read_text("utf-8"))[:60]
    rows = tiny_model.logits(ids)[:-1].astype(np.float64)
    loss = np.log(np.exp(rows).sum(1)) - rows[np.arange(len(rows)), ids[1:]]
    found = json.loads(
        run("eval", tiny, "--text", text, "--context", "64", "--stride", "32", "--tokens", "60", "--json").out
    )
    assert found["mean_loss"] == pytest.approx(loss.mean(), rel=1e-9)
    assert found["perplexity"] == pytest.approx(math.exp(loss.mean()), rel=1e-9)
    assert {key: found[key] for key in ("tokens", "context", "stride")} == {"tokens": 59, "context": 64, "stride": 32}


def test_windows_are_cut_as_asked(run: Run, tiny: str, text: Path) -> None:
    one = json.loads(run("eval", tiny, "--text", text, "--context", "64", "--stride", "32", "--json").out)
    other = json.loads(run("eval", tiny, "--text", text, "--context", "64", "--stride", "16", "--json").out)
    assert one["tokens"] == other["tokens"] > 100
    assert one["perplexity"] != other["perplexity"]


def test_text_for_people(run: Run, tiny: str, text: Path) -> None:
    found = run("eval", tiny, "--text", text, "--context", "64", "--stride", "32", "--tokens", "60")
    assert found.code == 0 and found.out.startswith("perplexity ") and "59 tokens" in found.out and found.err == ""


@pytest.mark.parametrize(
    "options",
    [
        ["--stride", "0"],
        ["--stride", "-4"],
        ["--stride", "64"],
        ["--tokens", "1"],
        ["--context", "513"],
        ["--context", "0"],
    ],
)
def test_options_out_of_range(run: Run, tiny: str, text: Path, options: list[str]) -> None:
    given = ["--context", "64", "--stride", "32", *options]
    found = run("eval", tiny, "--text", text, *given)
    assert (found.code, found.out) == (2, "") and options[1] in found.err


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe"])
def test_texts_that_cannot_be_scored(run: Run, tiny: str, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "odd.txt"
    if content is not None:
        path.write_bytes(content)
    found = run("eval", tiny, "--text", path, "--context", "64", "--stride", "32")
    assert found.code == 2 and str(path) in found.err
