"""What README.md and docs/ show runs, on a tiny model of the name that they use, and their links lead somewhere."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

import edgellm

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MODEL = "smollm2-135m-instruct"


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.skipif(find_spec("llguidance") is None, reason="llguidance is not installed")
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.name)
def test_examples_run(
    page: Path, tiny_gguf: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    edgellm.pull(tiny_gguf, name=MODEL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks(page):
        exec(compile(block, f"{page.name}: {block[:40]}", "exec"), names)
    for value in names.values():
        if isinstance(value, edgellm.Model):
            value.close()
    assert capsys.readouterr().out, "something is printed"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if not target.startswith(("https://", "http://", "#")):
            path, _, anchor = target.partition("#")
            other = page.parent / path
            assert other.exists(), f"{page.name} links to {target}"
            if anchor:
                headings = re.findall(r"^#+ (.*)$", other.read_text(), re.MULTILINE)
                known = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
                assert anchor in known, f"{page.name} links to {target}"


def test_files_that_are_named_are_there() -> None:
    """Paths of source files in the pages about the structure."""
    for page in PAGES:
        for name in re.findall(
            r"`((?:edgellm|kernels|converters|apps|tests|benchmarks)/[a-z_0-9/.]+\.py)`", page.read_text()
        ):
            assert (ROOT / name).exists(), f"{page.name} names {name}"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 100
