"""edgellm bench --engine: every figure is there, and what must not change a text does not."""

import json
from pathlib import Path
from typing import Any

import pytest

from edgellm.apps.engine_bench import costs, speculation, table
from edgellm.apps.engine_bench.bench import in_turn, ratio
from tests.apps.conftest import Run
from tests.tiny import make_tiny_gguf

KEYS = {
    "cached_memory_speedup", "cached_disk_speedup", "first_token_100_ms", "speculation_repeat_speedup",
    "speculation_free_ratio", "concurrent4_speedup", "short_request_share", "json_ratio", "kv_int8_decode_ratio",
    "overhead_share",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _no_longer_than_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speculation, "LEAST_SECONDS", 0.0)


@pytest.fixture
def found(run: Run, tmp_path: Path) -> dict[str, Any]:
    """All figures of a tiny model whose context holds what they take."""
    gguf = make_tiny_gguf(tmp_path / "long.gguf", context=8192)
    result = run("bench", gguf, "--engine", "--repeat", "1", "--threads", "1", "--json")
    assert result.code == 0 and result.err == ""
    figures: dict[str, Any] = json.loads(result.out)
    return figures


def test_every_figure_is_there_and_texts_are_equal(found: dict[str, Any]) -> None:
    assert set(found["aims"]) == KEYS and found["skipped"] == {}
    for key in KEYS:
        details = found["details"][key]
        assert found[key] > 0 and min(details["values"]) <= found[key] <= max(details["values"]), key
    assert 0 < found["overhead_share"] < 1
    assert len(found["details"]["short_request_share"]["values"]) >= 7
    assert found["details"]["short_request_share"]["worst"] >= found["short_request_share"]
    for key in ("speculation_repeat_speedup", "speculation_free_ratio"):
        details = found["details"][key]
        assert details["equal"] and all(text["equal"] for text in details["texts"].values())
    free, repeating = (
        found["details"][key]["texts"].values() for key in ("speculation_free_ratio", "speculation_repeat_speedup")
    )
    assert found["speculation_free_ratio"] == min(text["value"] for text in free)
    # Where a draft pays is a matter of times, which are this machine's: in none of all texts is not to be expected
    assert any(text["num_drafted_tokens"] for text in [*free, *repeating])


def test_a_small_context_skips_what_it_cannot_hold(run: Run, tiny: str) -> None:
    shown = run("bench", tiny, "--engine", "--repeat", "1", "--threads", "1")
    assert shown.code == 0
    (line,) = (line for line in shown.out.splitlines() if line.startswith("20 tokens beside 4,000"))
    assert "skipped" in line and "<= 15 %" in line and "the context is 512" in line
    assert "<= 200 ms" in shown.out and ">= 2.5 x" in shown.out


@pytest.mark.parametrize("options", [["--profile"], ["--against", "x.gguf"]])
def test_what_belongs_to_the_other_bench_is_refused(run: Run, tiny: str, options: list[str]) -> None:
    result = run("bench", tiny, "--engine", *options)
    assert (result.code, result.out) == (2, "") and options[0] in result.err


def test_two_things_are_measured_in_turn_and_compared_as_neighbours() -> None:
    order: list[str] = []

    def take(name: str) -> float:
        order.append(name)
        return float(len(order))

    found = in_turn(3, lambda: take("a"), lambda: take("b"))
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert ratio(*found).values == [1 / 2, 4 / 3, 5 / 6] and ratio(*found).value == 5 / 6


def test_aims_are_met_on_their_side() -> None:
    by_key = {measurement.key: measurement for measurement in table.MEASUREMENTS}
    assert by_key["json_ratio"].is_met(0.9) and not by_key["json_ratio"].is_met(0.89)
    assert by_key["overhead_share"].is_met(0.04) and not by_key["overhead_share"].is_met(0.041)


def test_without_llguidance_the_remedy_is_named(run: Run, tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "find_spec", lambda name: None)
    found = json.loads(run("bench", tiny, "--engine", "--repeat", "1", "--threads", "1", "--json").out)
    assert found["json_ratio"] is None and "pip install 'edgellm[constrain]'" in found["skipped"]["json_ratio"]
