"""edgellm cache: what is kept, clearing it, and why a prompt missed."""

import json
import stat
import sys
from pathlib import Path

import pytest

from edgellm.apps.prefixes import prefix_folder
from tests.apps.conftest import Run

PROMPT = "the rain in the south then on and on in the rain again " * 3


def test_what_a_prompt_leaves_is_found_by_the_next_start_shown_and_cleared(run: Run, tiny: str) -> None:
    assert run("cache").out.startswith("no prefixes")
    first = json.loads(run("run", tiny, "--raw", PROMPT, "-n", "5", "--json").out)
    assert first["usage"]["num_cached_tokens"] == 0
    second = json.loads(run("run", tiny, "--raw", PROMPT, "-n", "5", "--json").out)
    assert second["usage"]["num_cached_tokens"] == len(second["prompt_token_ids"]) - 1
    assert second["token_ids"] == first["token_ids"]
    found = json.loads(run("cache", "--json").out)
    assert [entry["model"] for entry in found["models"]] == [f"{tiny} (bf16)"]
    assert found["models"][0]["tokens"] >= len(first["prompt_token_ids"])
    assert f"{tiny} (bf16)" in run("cache").out
    assert run("cache", "clear").out.startswith("removed ")
    assert json.loads(run("cache", "show", "--json").out)["models"] == []


def test_why_names_the_token_that_differs(run: Run, tiny: str) -> None:
    assert run("cache", "why").code == 1
    run("run", tiny, "--raw", PROMPT, "-n", "3")
    assert "never seen" in run("cache", "why").out
    run("run", tiny, "--raw", PROMPT.replace("again", "AGAIN", 1), "-n", "3")
    told = run("cache", "why").out
    assert tiny in told and "differs from the cached text, which goes on with ' a'" in told
    assert json.loads(run("cache", "why", "--json").out)["reason"] == "differs"


def test_nothing_is_kept_where_that_is_asked(run: Run, tiny: str) -> None:
    run("run", tiny, "--raw", PROMPT, "-n", "3", "--no-prefix-cache")
    assert not prefix_folder().exists()
    run("run", tiny, "--raw", "something else", "-n", "3")
    before = run("cache", "why").out
    run("run", tiny, "--raw", PROMPT, "-n", "3", "--no-prefix-cache")
    assert run("cache", "why").out == before


def test_a_folder_of_no_use_costs_no_answer(run: Run, tiny: str) -> None:
    prefix_folder().parent.mkdir(parents=True, exist_ok=True)
    prefix_folder().write_text("in the way")
    found = run("run", tiny, "--raw", PROMPT, "-n", "3")
    assert found.code == 0 and found.out
    assert "prefixes are not kept" in found.err and "--no-prefix-cache" in found.err


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such modes")
def test_what_is_kept_is_for_its_owner_only(run: Run, tiny: str) -> None:
    run("run", tiny, "--raw", PROMPT, "-n", "3")
    for path in [prefix_folder(), *prefix_folder().rglob("*")]:
        assert stat.S_IMODE(Path(path).stat().st_mode) & 0o077 == 0, path
