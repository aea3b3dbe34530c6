"""What the prefix cache means to somebody who generates: the same text, sooner, and a reason where it is not."""

from pathlib import Path

import pytest

import edgellm
from edgellm import Model, SamplingParams
from edgellm.kernels.kv_formats import kv_formats
from tests.edgellm.engine.conftest import on_both_backends

PARAMS = SamplingParams(max_tokens=12, temperature=0.8, seed=3, speculation="off")
TEXT = [5 + (7 * at) % 250 for at in range(150)]


def answer(model: Model, prompt: list[int]) -> tuple[list[int], int, str]:
    stream = model.generate(prompt, PARAMS)
    ids = [piece.token_id for piece in stream]
    assert stream.cache_report is not None
    return ids, stream.usage.num_cached_tokens, model.explain(stream.cache_report)


@on_both_backends
def test_a_cached_prompt_gives_the_same_text_and_says_how_much_was_cached(tiny_gguf: Path, backend: str) -> None:
    with edgellm.load(tiny_gguf, device=backend, threads=2) as model:
        fresh, cached, why = answer(model, TEXT)
        assert cached == 0 and "never seen" in why
        again, cached, why = answer(model, TEXT)
        assert (again, cached) == (fresh, len(TEXT) - 1), "a regenerate costs one token"
        edited = [*TEXT[:100], 9, *TEXT[101:]]
        _, cached, why = answer(model, edited)
        assert cached == 100 and "token 100 differs" in why and repr(model.detokenize([TEXT[100]], special=True)) in why
        _, cached, _ = answer(model, [*TEXT, *fresh[:-1], 9])
        assert cached >= len(TEXT) + len(fresh) - 2, "the answer is part of the conversation's next prompt"
        model.check_integrity()


@on_both_backends
def test_a_restart_finds_what_was_cached(tiny_gguf: Path, tmp_path: Path, backend: str) -> None:
    folder = tmp_path / "prefixes"
    with edgellm.load(tiny_gguf, device=backend, threads=1, prefix_cache_dir=folder) as model:
        fresh, _, _ = answer(model, TEXT)
    with edgellm.load(tiny_gguf, device=backend, threads=2, prefix_cache_dir=folder) as model:
        again, cached, why = answer(model, TEXT)
        assert (again, cached) == (fresh, len(TEXT) - 1)
        assert f"{cached} of them from disk" in why
    with edgellm.load(tiny_gguf, device=backend, threads=1, prefix_cache_dir=folder, kv_cache_dtype="int8") as model:
        _, cached, why = answer(model, TEXT)
        assert cached == 0 and "another model file or KV format" in why


def test_keys_of_an_older_int8_format_are_not_taken_for_those_of_this(
    tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as older:
        older.setattr(kv_formats()["int8"], "meaning", "int8")  # before keys were transformed
        with edgellm.load(tiny_gguf, threads=1, prefix_cache_dir=tmp_path, kv_cache_dtype="int8") as model:
            answer(model, TEXT)
    with edgellm.load(tiny_gguf, threads=1, prefix_cache_dir=tmp_path, kv_cache_dtype="int8") as model:
        fresh, cached, why = answer(model, TEXT)
        assert cached == 0 and "another model file or KV format" in why
        assert answer(model, TEXT)[:2] == (fresh, len(TEXT) - 1)
