"""Generating from Python: streams, limits, stop texts, cancelling, errors."""

import gc
import threading
from pathlib import Path

import numpy as np
import pytest

import edgellm
from edgellm import Model, SamplingParams
from edgellm.engine.logprobs import logprobs_of
from edgellm.errors import ClosedError, ContextLengthError, ModelNotFoundError, OptionError, TemplateError
from tests.tiny import make_tiny_gguf

PROMPT = [5, 80, 90, 100, 7]


def greedy(model: Model, prompt: list[int], count: int) -> list[int]:
    """By teacher forcing: every token from the logits of the whole text before it."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(np.argmax(model.logits(ids)[-1])))
    return ids[len(prompt) :]


def test_generating_equals_teacher_forcing(tiny_model: Model) -> None:
    stream = tiny_model.generate(PROMPT, SamplingParams(max_tokens=20))
    pieces = list(stream)
    expected = greedy(tiny_model, PROMPT, 20)
    if 2 in expected:
        expected = expected[: expected.index(2) + 1]
    assert stream.token_ids == [piece.token_id for piece in pieces] == expected
    assert "".join(piece.text for piece in pieces) == stream.text
    stop = stream.finish_reason == "stop"
    assert stream.text == tiny_model.detokenize(expected[: len(expected) - stop])
    usage = stream.usage
    assert (usage.num_prompt_tokens, usage.num_cached_tokens, usage.num_completion_tokens) == (5, 0, len(expected))


def biased(token: int, **options: object) -> SamplingParams:
    """Parameters that make the model say one token for ever."""
    return SamplingParams(logit_bias={token: 1000.0}, **options)  # type: ignore[arg-type]


def letter(model: Model, text: str) -> int:
    (token,) = model.tokenize(text)
    return token


def test_the_end_token_ends_the_text_and_is_not_in_it(tiny_model: Model) -> None:
    stream = tiny_model.generate(PROMPT, biased(2))
    assert [(piece.text, piece.token_id) for piece in stream] == [("", 2)]
    assert (stream.finish_reason, stream.text, stream.token_ids) == ("stop", "", [2])


def test_max_tokens_and_a_full_context_end_by_length(tiny_model: Model, tiny_gguf: Path) -> None:
    stream = tiny_model.generate(PROMPT, biased(letter(tiny_model, "x"), max_tokens=3))
    assert len(list(stream)) == 3
    assert (stream.finish_reason, stream.text) == ("length", "xxx")
    with edgellm.load(tiny_gguf, context=40, threads=1) as model:
        stream = model.generate(PROMPT, biased(letter(model, "x")))
        list(stream)
        assert (stream.finish_reason, len(stream.token_ids)) == ("length", 40 - 5 + 1)  # the last token needs no room
        model.check_integrity()
        full = model.generate([5] * 40, biased(letter(model, "x")))
        assert len(list(full)) == 1
        with pytest.raises(ContextLengthError, match=r"41 tokens.* 40;.*context") as caught:
            model.generate([5] * 41)
        assert (caught.value.num_prompt_tokens, caught.value.num_context_tokens) == (41, 40)


def test_a_stop_text_ends_before_it_and_is_never_shown_in_part(tiny_model: Model) -> None:
    stream = tiny_model.generate(PROMPT, biased(letter(tiny_model, "x"), stop=("xxxx", "zz"), max_tokens=9))
    assert [piece.text for piece in stream] == ["", "", "", ""]
    assert (stream.finish_reason, stream.text, len(stream.token_ids)) == ("stop", "", 4)
    stream = tiny_model.generate(PROMPT, biased(letter(tiny_model, "x"), stop=("xxxy",), max_tokens=5))
    assert "".join(piece.text for piece in stream) == "xxxxx", "what was held back comes when the text ends otherwise"


def test_seeds_give_the_same_text_whatever_runs_beside(tiny_model: Model) -> None:
    params = SamplingParams(temperature=1.0, top_p=0.95, seed=3, max_tokens=30)
    alone = [piece.token_id for piece in tiny_model.generate(PROMPT, params)]
    first = tiny_model.generate(PROMPT, params)
    beside = tiny_model.generate(PROMPT[:3], SamplingParams(temperature=2.0, max_tokens=30))
    together = []
    for piece in first:
        together.append(piece.token_id)
        next(beside, None)
    assert together == alone
    beside.close()
    unseeded = [tiny_model.generate(PROMPT, SamplingParams(temperature=1.0, max_tokens=30)) for _ in range(2)]
    assert unseeded[0].seed != unseeded[1].seed


def test_pieces_carry_the_logprobs_asked_for(tiny_model: Model) -> None:
    """Which are those of the model, whatever the sampling makes of them, and those of `logits`."""
    params = SamplingParams(max_tokens=8, temperature=1.5, top_k=20, frequency_penalty=0.5, seed=1, logprobs=3)
    stream = tiny_model.generate(PROMPT, params)
    pieces = list(stream)
    rows = tiny_model.logits([*PROMPT, *stream.token_ids])[len(PROMPT) - 1 : -1]
    for piece, expected in zip(pieces, logprobs_of(rows, stream.token_ids, 3), strict=True):
        assert piece.logprobs is not None
        assert piece.logprobs.logprob == pytest.approx(expected.logprob, abs=1e-5)
        assert [id_ for id_, _ in piece.logprobs.top] == [id_ for id_, _ in expected.top]
    assert next(tiny_model.generate(PROMPT, SamplingParams(max_tokens=1))).logprobs is None


def test_dry_breaks_at_every_token_that_has_a_breaker_inside(tiny_model: Model) -> None:
    """Where the model wants one token for ever, DRY comes between, unless that token is a breaker."""
    x, th = letter(tiny_model, "x"), letter(tiny_model, "th")
    options = {"max_tokens": 4, "dry_multiplier": 90.0, "dry_base": 100.0, "dry_allowed_length": 1}

    def repeats(token: int, breakers: tuple[str | int, ...]) -> bool:
        params = biased(token, **options, dry_sequence_breakers=breakers)
        return [piece.token_id for piece in tiny_model.generate([5], params)] == 4 * [token]

    assert repeats(x, ("x",)) and repeats(x, ("q", x)) and repeats(th, ("h",))
    assert not repeats(x, ("q",)) and not repeats(x, ()) and not repeats(th, ("x",))


def test_a_breaker_that_is_in_no_token_is_refused(tiny_model: Model) -> None:
    with pytest.raises(OptionError, match=r"xyz.*token ids"):
        tiny_model.generate(PROMPT, SamplingParams(dry_multiplier=1.0, dry_sequence_breakers=("xyz",)))
    tiny_model.generate(PROMPT, SamplingParams(dry_sequence_breakers=("xyz",))).close()  # DRY is off


def test_closing_a_stream_frees_its_memory_at_once(tiny_model: Model) -> None:
    free = tiny_model.num_free_blocks
    stream = tiny_model.generate([5] * 100, biased(letter(tiny_model, "x")))
    next(stream)
    assert tiny_model.num_free_blocks < free
    stream.close()
    assert stream.finish_reason == "cancelled"
    assert list(stream) == []
    assert tiny_model.num_free_blocks == free
    with tiny_model.generate(PROMPT, biased(letter(tiny_model, "x"))) as stream:
        next(stream)
    assert tiny_model.num_free_blocks == free
    abandoned = tiny_model.generate(PROMPT, biased(letter(tiny_model, "x")))
    next(abandoned)
    del abandoned
    gc.collect()
    assert tiny_model.num_free_blocks == free
    tiny_model.check_integrity()


def test_another_thread_may_cancel(tiny_model: Model) -> None:
    free = tiny_model.num_free_blocks
    stream = tiny_model.generate(PROMPT, biased(letter(tiny_model, "x")))
    next(stream)
    consumer = threading.Thread(target=lambda: list(stream))
    consumer.start()
    stream.close()
    consumer.join(timeout=20)
    assert not consumer.is_alive()
    assert stream.finish_reason == "cancelled"
    assert tiny_model.num_free_blocks == free


def test_many_threads_generate_what_each_would_alone(tiny_model: Model) -> None:
    prompts = [[5 + i, 80, 90 + i] for i in range(4)]
    params = SamplingParams(max_tokens=25)
    alone = [[piece.token_id for piece in tiny_model.generate(prompt, params)] for prompt in prompts]
    results: dict[int, list[int]] = {}
    threads = [
        threading.Thread(
            target=lambda i=i: results.update(
                {i: [piece.token_id for piece in tiny_model.generate(prompts[i], params)]}
            )
        )
        for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [results[i] for i in range(4)] == alone
    tiny_model.check_integrity()


def test_chat_is_the_rendered_prompt(tiny_model: Model) -> None:
    messages = [{"role": "user", "content": "Is the <|im_end|> an end?"}]
    text = tiny_model.render(messages)
    assert text == "<|im_start|>user\nIs the <|im_end|> an end?<|im_end|>\n<|im_start|>assistant\n"
    ids = tiny_model.chat(messages, SamplingParams(max_tokens=1)).prompt_token_ids
    assert tiny_model.detokenize(ids, special=True) == text
    assert ids.count(2) == 1, "the end in the message is text, not the end of the message"


def test_text_prompts_parse_special_tokens(tiny_model: Model) -> None:
    assert tiny_model.generate("<|im_start|>hi", SamplingParams(max_tokens=1)).prompt_token_ids[0] == 1
    assert tiny_model.tokenize("<|im_start|>")[0] != 1


@pytest.mark.parametrize("prompt", [[], [-1], [10**6], [1.5], ["5"], ""], ids=str)
def test_bad_prompts_are_refused(tiny_model: Model, prompt: object) -> None:
    with pytest.raises(OptionError):
        tiny_model.generate(prompt)  # type: ignore[arg-type]


def test_a_biased_token_outside_the_vocabulary_is_refused(tiny_model: Model) -> None:
    with pytest.raises(OptionError, match="271"):
        tiny_model.generate(PROMPT, SamplingParams(logit_bias={271: 1.0}))


def test_a_closed_model_says_so(tiny_gguf: Path) -> None:
    model = edgellm.load(tiny_gguf, threads=2)
    stream = model.generate(PROMPT, biased(5))
    next(stream)
    model.close()
    model.close()
    with pytest.raises(ClosedError, match="load it again"):
        next(stream)
    for use in (lambda: model.generate(PROMPT), lambda: model.logits(PROMPT), lambda: model.chat([])):
        with pytest.raises(ClosedError):
            use()


def test_closing_ends_the_threads(tiny_gguf: Path) -> None:
    before = threading.active_count()
    model = edgellm.load(tiny_gguf, threads=3)
    assert threading.active_count() == before + 2
    model.close()
    assert threading.active_count() == before
    model = edgellm.load(tiny_gguf, threads=3)
    del model
    gc.collect()
    assert threading.active_count() == before, "a model that nobody holds ends its threads too"


def test_a_model_without_a_template_names_the_remedy(tmp_path: Path) -> None:
    path = make_tiny_gguf(tmp_path / "plain.gguf")
    with edgellm.load(path, threads=1) as model:
        model.packed.chat_template = None
        with pytest.raises(TemplateError, match="generate"):
            model.chat([{"role": "user", "content": "hi"}])


def test_unknown_models_and_wrong_options_are_refused(tiny_gguf: Path, home: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="smollm2-135m-instruct"):
        edgellm.load("smollm2-135m-instruct")
    for options in ({"threads": 0}, {"threads": 2.0}, {"context": 0}, {"context": 10**6}, {"context": True}):
        with pytest.raises(OptionError):
            edgellm.load(tiny_gguf, **options)
