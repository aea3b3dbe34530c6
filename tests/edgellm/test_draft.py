"""A draft model never changes a text, and is asked only as long as it is right."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import edgellm
from edgellm import SamplingParams
from edgellm.backends.cpu.backend import CPUBackend
from edgellm.backends.cpu.runner import CPURunner
from edgellm.converters.on_the_fly import pack_on_the_fly
from edgellm.engine import draft as draft_module
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
    with edgellm.load(tiny_gguf, device=backend, threads=2) as model:
        plain = [piece.token_id for piece in model.generate(PROMPT, params)]
    with edgellm.load(tiny_gguf, device=backend, threads=2, draft=draft) as model:
        for prompt in (PROMPT, PROMPT[:3], PROMPT):  # it follows from one text to the next and back
            stream = model.generate(prompt, params)
            ids = [piece.token_id for piece in stream]
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
        expected = [[piece.token_id for piece in model.generate(text, never)] for text in texts]
    packed, backend = open_packed(pack_on_the_fly(path, tmp_path)), CPUBackend(library, threads=1, processors=1)
    draft = DraftModel(packed, backend, context=64)

    def propose(text: list[int]) -> list[int]:
        proposer = draft.proposer()
        proposer.extend(text)
        proposer.ask(6)
        draft.run()
        proposer.close()
        return proposer.propose(6)

    for text, ids in zip(texts, expected, strict=True):
        assert propose(text)[: len(ids)] == ids
    draft.check_integrity()
    draft.close()
    backend.close()


@pytest.mark.parametrize("contexts", [1, 16], ids=["little memory", "plenty"])
@pytest.mark.parametrize("kind", ["llama", "hybrid"])
def test_texts_drafted_for_together_are_drafted_as_alone(
    tiny_gguf: Path, library: Library, tmp_path: Path, kind: str, contexts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one step for all, also where they take each other's memory; then each gets fewer, or none at all."""
    monkeypatch.setattr(draft_module, "MOST_CONTEXTS", contexts)
    path = tiny_gguf if kind == "llama" else make_hybrid_gguf(tmp_path / "hybrid.gguf")
    texts = [[*PROMPT, *range(9, 9 + 3 * number)] for number in range(8)]
    never = SamplingParams(max_tokens=12, speculation="off", ignore_eos=True)
    with edgellm.load(path, threads=1) as model:
        expected = [model.complete(text, never).token_ids for text in texts]
    packed, backend = open_packed(pack_on_the_fly(path, tmp_path)), CPUBackend(library, threads=1, processors=1)
    draft = DraftModel(packed, backend, context=64)
    proposers = [draft.proposer() for _ in texts]
    for proposer, text in zip(proposers, texts, strict=True):
        proposer.extend(text)
    for _ in range(3 if contexts > 1 else 0):  # prompts take several calls, and have no proposal before the last
        for proposer in proposers:
            proposer.ask(1)
        draft.run()
    num_steps, num_proposed = 0, 0
    runner_start = CPURunner.start

    def counting(self: CPURunner, *arguments: Any, **options: Any) -> None:
        nonlocal num_steps
        num_steps += 1
        runner_start(self, *arguments, **options)

    monkeypatch.setattr(CPURunner, "start", counting)
    for at in range(0, 12, 3):
        for proposer in proposers:
            proposer.ask(3)
        before = num_steps
        draft.run()
        assert num_steps - before <= 3 + len(texts), "three for the drafts, one each to catch up"
        for proposer, ids in zip(proposers, expected, strict=True):
            found = proposer.propose(3)
            assert found == ids[at : at + len(found)]
            num_proposed += len(found)
            proposer.extend(ids[at : at + 3])
        draft.check_integrity()
    assert num_proposed == 8 * 12 if contexts == 16 else 0 < num_proposed < 8 * 12
    draft.close()
    backend.close()


@pytest.mark.parametrize("driver", ["reader", "thread"])
@pytest.mark.parametrize("seed", [0, 1], ids=["the model itself", "another"])
def test_requests_together_share_a_draft_model(tmp_path: Path, tiny_gguf: Path, seed: int, driver: str) -> None:
    draft = make_tiny_gguf(tmp_path / "draft.gguf", body="Q4_1", seed=seed)
    prompts = [[*PROMPT, number] for number in range(5, 11)]
    params = replace(CHANCE, max_tokens=25)
    with edgellm.load(tiny_gguf, threads=2) as model:
        plain = [model.complete(prompt, params).token_ids for prompt in prompts]
    with edgellm.load(tiny_gguf, threads=2, draft=draft, driver=driver) as model:
        answers = model.generate_many(prompts, params)
        assert [answer.token_ids for answer in answers] == plain
        assert all(answer.usage.num_drafted_tokens > 0 for answer in answers)
        model.check_integrity()


def test_a_draft_with_a_smaller_context_proposes_up_to_its_end(tmp_path: Path, tiny_gguf: Path) -> None:
    draft, params = make_tiny_gguf(tmp_path / "draft.gguf", body="Q4_1", context=40), replace(GREEDY, max_tokens=60)
    with edgellm.load(tiny_gguf, threads=1) as model:
        plain = [piece.token_id for piece in model.generate(PROMPT, params)]
    with edgellm.load(tiny_gguf, threads=1, draft=draft) as model:
        assert [piece.token_id for piece in model.generate(PROMPT, params)] == plain


def test_a_draft_with_another_vocabulary_is_refused(tmp_path: Path, tiny_gguf: Path) -> None:
    import gguf

    def change(writer: gguf.GGUFWriter) -> None:
        tokens = writer.kv_data[0]["tokenizer.ggml.tokens"].value
        tokens[10], tokens[11] = tokens[11], tokens[10]

    draft = make_tiny_gguf(tmp_path / "other.gguf", change=change)
    with pytest.raises(OptionError, match=r"token 10\b.*same family"):
        edgellm.load(tiny_gguf, draft=draft)
