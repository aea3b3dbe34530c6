"""edgellm models, pull and convert: what is stored is what is shown."""

import json
from pathlib import Path

from edgellm.apps.conversion_report import kinds
from edgellm.packed.header import open_header
from edgellm.store import Store
from tests.apps.conftest import Run


def test_an_empty_store(run: Run) -> None:
    assert "edgellm pull" in run("models").out
    assert json.loads(run("models", "--json").out) == {"models": []}


def test_list(run: Run, tiny: str) -> None:
    header = open_header(Store().path(tiny))
    (model,) = json.loads(run("models", "--json").out)["models"]
    assert model == {
        "name": "tiny",
        "path": str(header.path),
        "architecture": "llama",
        "parameters": header.num_parameters,
        "layout": "int4-asym-g32+int8-g32",
        "bits_per_weight": header.bits_per_weight,
        "bytes": header.path.stat().st_size,
        "license": "apache-2.0",
    }
    assert run("models", "list", "--json").out == run("models", "--json").out == run("models", "--json", "list").out
    titles, row = run("models").out.splitlines()
    assert titles.split() == ["name", "architecture", "parameters", "layout", "bits/weight", "size", "license"]
    assert row.split()[:2] == ["tiny", "llama"] and row.split()[-1] == "apache-2.0"


def test_show(run: Run, tiny: str) -> None:
    found = json.loads(run("models", "show", tiny, "--json").out)
    header = open_header(Store().path(tiny))
    assert found["config"] == header.network.config
    assert found["provenance"] == header.provenance
    assert found["report"] == header.report
    assert found["chat_template"] == header.chat_template
    text = run("models", "show", tiny).out
    assert header.provenance["source_sha256"] in text and "attention.q x 2" in text


def test_remove(run: Run, tiny: str) -> None:
    assert run("models", "rm", tiny).code == 0
    assert Store().names() == []
    assert run("models", "rm", tiny).code == 2


def test_pull_names_and_packs(run: Run, tiny_gguf: Path) -> None:
    found = run("pull", tiny_gguf, "--layout", "int8-g32")
    assert (found.code, found.err) == (0, "")
    assert found.out.startswith("tiny: int8-g32, 8.50 bits per weight, ")
    assert open_header(Store().path("tiny")).provenance["recipe"] == "int8-g32"
    assert run("pull", tiny_gguf, "--name", "Not A Name").code == 2
    assert run("pull", tiny_gguf, "--layout", "int3").code == 2
    assert run("pull", "nowhere").code == 2


def test_convert(run: Run, tiny_gguf: Path, tmp_path: Path) -> None:
    path = tmp_path / "out.edgellm"
    found = json.loads(run("convert", tiny_gguf, path, "--layout", "int4-g32", "--json").out)
    assert found["bytes"] == path.stat().st_size
    assert found["tensors"] == open_header(path).report["tensors"]
    assert 0 < found["relative_error"] < 0.2
    rows = [line.split() for line in run("convert", tiny_gguf, path).out.splitlines()]
    assert ["attention.q", "x", "2", "Q4_1", "int4-asym-g32", "5.00", "exact"] in rows
    assert rows[-1][0] == "all" and rows[-1][-1] == "exact"


def test_a_report_groups_layers_and_shows_the_worst() -> None:
    def tensor(error: float, layout: str = "int4-g32") -> dict[str, object]:
        return {"source": "F16", "layout": layout, "relative_error": error}

    tensors = {
        "embedding": tensor(0.0, "int8-g64"),
        "layers.0.ffn.up": tensor(0.01),
        "layers.1.ffn.up": tensor(0.03),
        "layers.2.ffn.up": tensor(0.02, "int8-g32"),
        "layers.10.ffn.up": tensor(0.02),
    }
    assert list(kinds(tensors)) == [
        ["embedding", "F16", "int8-g64", "8.25", "exact"],
        ["ffn.up x 3", "F16", "int4-g32", "4.50", "3.000%"],
        ["ffn.up", "F16", "int8-g32", "8.50", "2.000%"],
    ]
