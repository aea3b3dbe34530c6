"""edgellm tokenize gives the tokenizer's ids for exactly the bytes that came in."""

import json
from pathlib import Path

import gguf
import pytest

from edgellm import Model
from edgellm.kernels import jit
from edgellm.packed.read import PackedModel
from edgellm.store import Store, cache_folder
from tests.apps.conftest import Run
from tests.tiny import make_tiny_gguf, tiny_tokens

TEXT = " the <|im_start|>thing\r\n\n\tÄ \N{PILE OF POO}<|im_end|> \n"


def test_special_tokens_are_read_unless_forbidden(run: Run, tiny: str, tiny_model: Model) -> None:
    plain = run("tokenize", tiny, stdin=TEXT.encode())
    assert [int(word) for word in plain.out.split(" ")] == tiny_model.tokenize(TEXT, special=True)
    assert plain.out.endswith("\n") and plain.code == 0
    forbidden = run("tokenize", "--no-special", "--json", tiny, stdin=TEXT.encode())
    assert json.loads(forbidden.out) == {"token_ids": tiny_model.tokenize(TEXT, special=False, add_bos=False)}
    assert {1, 2}.isdisjoint(json.loads(forbidden.out)["token_ids"])


def test_name_packed_file_gguf_and_bare_vocabulary_agree(run: Run, tiny: str, tiny_gguf: Path, tmp_path: Path) -> None:
    bare = make_tiny_gguf(tmp_path / "vocabulary.gguf", tensors=False)
    found = {run("tokenize", model, stdin=TEXT.encode()).out for model in (tiny, Store().path(tiny), tiny_gguf, bare)}
    assert len(found) == 1
    assert not (cache_folder() / "packed").exists()  # a GGUF was not packed for it


def test_added_tokens_follow_the_vocabulary(run: Run, tmp_path: Path) -> None:
    def with_bos(writer: gguf.GGUFWriter) -> None:
        writer.kv_data[0]["tokenizer.ggml.add_bos_token"].value = True

    path = make_tiny_gguf(tmp_path / "bos.gguf", tensors=False, change=with_bos)
    the = tiny_tokens().index("the")
    assert run("tokenize", path, stdin=b"the").out == f"1 {the}\n"
    assert run("tokenize", "--no-special", path, stdin=b"the").out == f"{the}\n"


def test_nothing_in_nothing_out(run: Run, tiny: str) -> None:
    assert run("tokenize", tiny).out == "\n"
    assert json.loads(run("tokenize", tiny, "--json").out) == {"token_ids": []}


def test_neither_weights_nor_kernels_are_touched(run: Run, tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*args: object, **options: object) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr(PackedModel, "__init__", forbidden)
    monkeypatch.setattr(jit, "load", forbidden)
    assert run("tokenize", tiny, stdin=b"the").code == 0


def test_bytes_that_are_not_utf8(run: Run, tiny: str) -> None:
    found = run("tokenize", tiny, stdin=b"abc\xc3")
    assert (found.code, found.out) == (2, "")
    assert "byte 3" in found.err
