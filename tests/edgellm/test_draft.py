"""A draft model never changes a text, and is asked only as long as it is right."""

from dataclasses import replace
from pathlib import Path

import pytest

import edgellm
from edgellm import SamplingParams
from edgellm.backends.cpu.backend import CPUBackend
from edgellm.converters.on_the_fly import pack_on_the_fly
from edgellm.engine.draft import DraftModel
from edgellm.errors import OptionError
from edgellm.kernels.jit import Library
from edgellm.packed.read import open_packed
from tests.edgellm.families.tiny_hybrid import make_hybrid_gguf
from tests.tiny import make_tiny_gguf

PROMPT = [5, 80, 90, 100, 7, 60]
GREEDY = SamplingParams(speculation="on", logit_bias={2: -1e9})
CHANCE = SamplingParams(speculation="on", temperature=1.0, seed=7, logit_bias={2: -1e9})


@pytest.mark.parametrize("params", [GREEDY, CHANCE], ids=["greedy", "chance"])
@pytest.mark.parametrize("seed", [0, 1], ids=["the model itself", "another"])
@pytest.mark.parametrize(("backend", "count"), [("cpu", 60), ("naive", 20)])
def test_a_draft_model_never_changes_a_text(
    tmp_path: Path, tiny_gguf: Path, params: SamplingParams, seed: int, backend: str, count: int
) -> None:
    params, draft = replace(params, max_tokens=count), make_tiny_gguf(tmp_path / "draft.gguf", body="Q4_1", seed=seed)
    with edgellm.load(tiny_gguf, backend=backend, threads=2) as model:
        plain = [piece.id for piece in model.generate(PROMPT, params)]
    with edgellm.load(tiny_gguf, backend=backend, threads=2, draft=draft) as model:
        for prompt in (PROMPT, PROMPT[:3], PROMPT):  # it follows from one text to the next and back
            stream = model.generate(prompt, params)
            ids = [piece.id for piece in stream]
            assert prompt != PROMPT or ids == plain
            assert stream.usage.num_drafted_tokens > 0
            if seed == 0 and params.temperature == 0:
                # It drafts for itself; only what stood in the text before may be proposed wrongly
                assert stream.usage.num_accepted_tokens > 0.8 * stream.usage.num_drafted_tokens
        model.check_integrity()


@pytest.mark.parametrize("kind", ["llama", "hybrid"])
def test_a_draft_follows_from_one_text_to_another(tiny_gguf: Path, library: Library, tmp_path: Path, kind: str) -> None:
    """It proposes what it would say itself, though it keeps what it computed of the text before."""
    path = tiny_gguf if kind == "llama" else make_hybrid_gguf(tmp_path / "hybrid.gguf")
    texts = [[*PROMPT, 9, 8, 7], [*PROMPT, 9, 50], PROMPT[:4], [*PROMPT, 9, 8, 7, 6]]
    never = SamplingParams(max_tokens=6, speculation="off")
    with edgellm.load(path, threads=1) as model:
        expected = [[piece.id for piece in model.generate(text, never)] for text in texts]
    packed, backend = open_packed(pack_on_the_fly(path, tmp_path)), CPUBackend(library, threads=1, processors=1)
    draft = DraftModel(packed, backend, context=64)
    for text, ids in zip(texts, expected, strict=True):
        assert draft.propose(text, 6)[: len(ids)] == ids
    draft.check_integrity()
    draft.close()
    backend.close()


def test_a_draft_with_a_smaller_context_proposes_up_to_its_end(tmp_path: Path, tiny_gguf: Path) -> None:
    draft, params = make_tiny_gguf(tmp_path / "draft.gguf", body="Q4_1", context=40), replace(GREEDY, max_tokens=60)
    with edgellm.load(tiny_gguf, threads=1) as model:
        plain = [piece.id for piece in model.generate(PROMPT, params)]
    with edgellm.load(tiny_gguf, threads=1, draft=draft) as model:
        assert [piece.id for piece in model.generate(PROMPT, params)] == plain


def test_a_draft_with_another_vocabulary_is_refused(tmp_path: Path, tiny_gguf: Path) -> None:
    import gguf

    def change(writer: gguf.GGUFWriter) -> None:
        tokens = writer.kv_data[0]["tokenizer.ggml.tokens"].value
        tokens[10], tokens[11] = tokens[11], tokens[10]

    draft = make_tiny_gguf(tmp_path / "other.gguf", change=change)
    with pytest.raises(OptionError, match=r"token 10\b.*same family"):
        edgellm.load(tiny_gguf, draft=draft)
