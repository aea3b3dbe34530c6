"""Looking into a step shows what the model computes, and changes nothing."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import edgellm
from edgellm import Model, Observation, Probe, SamplingParams
from edgellm.errors import OptionError
from edgellm.families.llama import FAMILY as LLAMA
from edgellm.kernels import reference

PROMPT = [5, 80, 90, 100, 7, 60]
PARAMS = SamplingParams(max_tokens=8, speculation="off")


@pytest.fixture(scope="module", params=["cpu", "naive"])
def model(request: pytest.FixtureRequest, tiny_gguf: Path, _session_home: None) -> Iterator[Model]:
    with edgellm.load(tiny_gguf, device=request.param, threads=2) as model:
        yield model


def watch(model: Model, **wanted: object) -> tuple[list[int], list[Observation]]:
    seen: list[Observation] = []
    stream = model.generate(PROMPT, PARAMS, probe=Probe(seen.append, **wanted))  # type: ignore[arg-type]
    return [piece.token_id for piece in stream], seen


def rows(seen: list[Observation], count: int) -> list[int]:
    """Tokens in the order in which they were computed."""
    return [token for one in seen for token in one.tokens][:count]


def test_a_watched_answer_is_the_same(model: Model) -> None:
    plain = [piece.token_id for piece in model.generate(PROMPT, PARAMS)]
    ids, seen = watch(model, logits=True, hidden=range(3), attention=[(0, 1), (1, 3)], timings=True)
    assert ids == plain
    assert seen[-1].tokens == ids[-2:-1]
    assert all(set(one.seconds) == set(seen[0].seconds) and min(one.seconds.values()) >= 0 for one in seen)


def test_logits_and_the_last_hidden_state_are_those_of_the_model(model: Model) -> None:
    ids, seen = watch(model, logits=True, hidden=[2])
    exact = model.logits([*PROMPT, *ids])
    rounding = 0 if model.isa != "naive" else 1e-5  # its states are float64, of which float32 is told
    for one in seen:
        if one.logits is None or not len(one.logits):
            continue
        last = one.first_position + len(one.tokens) - 1
        assert np.array_equal(one.logits[-1], exact[last])
        assert np.abs(model.unembed(one.hidden[2])[-1] - exact[last]).max() <= rounding


def test_the_first_hidden_state_is_the_embedding(model: Model) -> None:
    _, seen = watch(model, hidden=[0, 1])
    embedding = model.packed.weights["embedding"]
    table = embedding.dense()
    for one in seen:
        assert np.allclose(one.hidden[0], reference.embed(table, np.array(one.tokens)))
        assert one.hidden[1].shape == one.hidden[0].shape and not np.allclose(one.hidden[1], one.hidden[0])


@pytest.mark.parametrize("backend", ["cpu", "naive"])
@pytest.mark.parametrize("dtype", ["bf16", "int8"])
def test_attention_is_a_distribution_over_the_past_that_gives_the_layers_output(
    tiny_gguf: Path, dtype: str, backend: str
) -> None:
    with edgellm.load(tiny_gguf, device=backend, threads=1, kv_cache_dtype=dtype) as model:
        _, seen = watch(model, attention=[(1, head) for head in range(4)])
        for one in seen:
            for weights in one.attention.values():
                assert weights.shape == (len(one.tokens), one.first_position + len(one.tokens))
                assert np.allclose(weights.sum(-1), 1, atol=1e-6)
                for row in range(len(one.tokens)):
                    assert not weights[row, one.first_position + row + 1 :].any(), "the future is not seen"
        expected = forward_attention(model)
        for head in range(4):
            assert np.allclose(seen[0].attention[1, head], expected[head], atol=0.03)


def forward_attention(model: Model) -> list[np.ndarray]:
    """Attention weights of layer 1's heads over PROMPT, by the NumPy model."""
    found: list[np.ndarray] = []
    exact = reference.attend

    def spy(q: np.ndarray, keys: np.ndarray, values: np.ndarray, first: int, **options: object) -> object:
        heads = q.shape[1]
        scores = np.einsum("rhe,she->hrs", q, np.repeat(keys, heads // keys.shape[1], axis=1))
        scores[:, ~np.tri(len(q), dtype=bool)] = -np.inf
        weights = np.exp2(scores - scores.max(-1, keepdims=True))
        found[:] = list(weights / weights.sum(-1, keepdims=True))
        return exact(q, keys, values, first, **options)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "attend", spy)
        LLAMA.reference(model.network, model.packed, PROMPT)
    return found


def test_a_callback_may_use_the_model(model: Model) -> None:
    lens: list[int] = []
    probe = Probe(lambda seen: lens.append(int(np.argmax(model.unembed(seen.hidden[2])[-1]))), hidden=[2])
    ids = [piece.token_id for piece in model.generate(PROMPT, PARAMS, probe=probe)]
    assert lens[-len(ids) :] == ids


@pytest.mark.parametrize(
    "wanted", [{"hidden": [3]}, {"hidden": [-1]}, {"attention": [(2, 0)]}, {"attention": [(0, 4)]}]
)
def test_what_the_model_has_not_is_refused(model: Model, wanted: dict[str, object]) -> None:
    with pytest.raises(OptionError, match=r"\d"):
        watch(model, **wanted)
    with pytest.raises(OptionError, match="shape"):
        model.unembed(np.zeros((1, 3), np.float32))
