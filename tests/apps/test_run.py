"""edgellm run says what the Python API says."""

import io
import json
import signal
import subprocess
import sys
from argparse import ArgumentParser

import pytest

import edgellm
from edgellm import Model, Piece, SamplingParams, Stream
from edgellm.apps.options import add_engine_options, add_sampling_options, sampling_params
from edgellm.apps.summary import filled_context
from tests.apps.conftest import Result, Run

QUESTION = [{"role": "user", "content": "Hi there"}]
LONG = ("--logit-bias", "0=-1000", "--logit-bias", "2=-1000")  # never ends its turn


class Terminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


def answer(stream: Stream) -> Stream:
    for _ in stream:
        pass
    return stream


def test_text_and_json_are_those_of_the_api(run: Run, tiny: str, tiny_model: Model) -> None:
    expected = answer(tiny_model.chat(QUESTION, SamplingParams(max_tokens=20)))
    plain = run("run", tiny, "Hi there", "-n", "20")
    assert (plain.code, plain.out, plain.err) == (0, expected.text + "\n", "")
    found = json.loads(run("run", tiny, "Hi there", "-n", "20", "--json").out)
    assert found["text"] == expected.text
    assert found["token_ids"] == expected.token_ids
    assert found["prompt_token_ids"] == expected.prompt_token_ids
    assert found["finish_reason"] == expected.finish_reason
    assert set(found["timings"]) == {
        "queue_ms",
        "first_token_ms",
        "prefill_tokens_per_second",
        "decode_tokens_per_second",
    }
    assert all(value > 0 for value in found["timings"].values())
    assert found["usage"]["num_completion_tokens"] == len(expected.token_ids)


def test_every_sampling_option_arrives() -> None:
    parser = ArgumentParser()
    add_sampling_options(parser)
    assert sampling_params(parser.parse_args([])) == SamplingParams()
    options = "-n 30 --temperature 1.5 --top-k 50 --top-p 0.9 --min-p 0.01 --repetition-penalty 1.3 --seed 7 --stop zq"
    options += " --presence-penalty 0.4 --frequency-penalty 0.2 --logit-bias 5=2 --logit-bias 6=-1.5 --stop b"
    options += " --typical-p 0.8 --xtc-threshold 0.2 --xtc-probability 0.5 --penalty-last-n 64 --dry-multiplier 0.8"
    options += " --dry-base 1.5 --dry-allowed-length 3 --dry-penalty-last-n 100 --dry-sequence-breaker a"
    options += " --dry-sequence-breaker b --mirostat 2 --mirostat-tau 4 --mirostat-eta 0.2 --sampler-order top_p,top_k"
    options += " --speculation off --context-policy shift --context-keep 9"
    assert sampling_params(parser.parse_args(options.split())) == SamplingParams(
        max_tokens=30,
        temperature=1.5,
        top_k=50,
        top_p=0.9,
        min_p=0.01,
        repetition_penalty=1.3,
        presence_penalty=0.4,
        frequency_penalty=0.2,
        typical_p=0.8,
        xtc_threshold=0.2,
        xtc_probability=0.5,
        penalty_last_n=64,
        dry_multiplier=0.8,
        dry_base=1.5,
        dry_allowed_length=3,
        dry_penalty_last_n=100,
        dry_sequence_breakers=("a", "b"),
        mirostat=2,
        mirostat_tau=4.0,
        mirostat_eta=0.2,
        sampler_order=("top_p", "top_k"),
        seed=7,
        logit_bias={5: 2.0, 6: -1.5},
        stop=("zq", "b"),
        speculation="off",
        context_policy="shift",
        context_keep=9,
    )


def test_sampling_options_reach_the_model(run: Run, tiny: str, tiny_model: Model) -> None:
    params = SamplingParams(max_tokens=30, temperature=1.5, seed=7)
    options = ("-n", "30", "--temperature", "1.5", "--seed", "7", "--json")
    found = json.loads(run("run", tiny, "Hi there", *options).out)
    assert found["token_ids"] == answer(tiny_model.chat(QUESTION, params)).token_ids


def test_system_text(run: Run, tiny: str, tiny_model: Model) -> None:
    found = json.loads(run("run", tiny, "Hi there", "--system", "Be kind", "-n", "1", "--json").out)
    messages = [{"role": "system", "content": "Be kind"}, *QUESTION]
    assert found["prompt_token_ids"] == tiny_model.chat(messages).prompt_token_ids


def test_raw_is_the_text_as_it_is(run: Run, tiny: str, tiny_model: Model) -> None:
    found = json.loads(run("run", tiny, "--raw", "-n", "2", "--json", stdin=b"a <|im_end|>\n").out)
    assert found["prompt_token_ids"] == tiny_model.tokenize("a <|im_end|>\n", special=True)


def test_raw_and_system_exclude_each_other(run: Run, tiny: str) -> None:
    found = run("run", tiny, "--raw", "--system", "Be kind", "x")
    assert found.code == 2 and "--system" in found.err


def prompt_token_ids(result: Result) -> list[int]:
    found: list[int] = json.loads(result.out)["prompt_token_ids"]
    return found


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_prompt_from_standard_input(run: Run, tiny: str, end: bytes) -> None:
    piped = run("run", tiny, "-n", "5", "--json", stdin="Zürich".encode() + end)
    given = run("run", tiny, "Zürich", "-n", "5", "--json")
    assert prompt_token_ids(piped) == prompt_token_ids(given)


@pytest.mark.parametrize("raw", [(), ("--raw",)])
def test_what_is_piped_in_goes_after_the_prompt(run: Run, tiny: str, raw: tuple[str, ...]) -> None:
    piped = run("run", tiny, "Summarize:", "-n", "5", "--json", *raw, stdin=b"one\ntwo")
    given = run("run", tiny, "Summarize:\none\ntwo", "-n", "5", "--json", *raw)
    assert prompt_token_ids(piped) == prompt_token_ids(given)


def test_a_raw_text_is_piped_in_as_it_is(run: Run, tiny: str) -> None:
    piped = run("run", tiny, "--raw", "-n", "5", "--json", stdin=b"one\n")
    given = run("run", tiny, "one\n", "--raw", "-n", "5", "--json")
    assert prompt_token_ids(piped) == prompt_token_ids(given)


def test_standard_input_that_is_not_utf8(run: Run, tiny: str) -> None:
    found = run("run", tiny, stdin=b"ab\xff")
    assert found.code == 2 and "byte 2" in found.err


def test_no_prompt_at_all(run: Run, tiny: str) -> None:
    found = run("run", tiny)
    assert found.code == 2 and "edgellm run tiny PROMPT, or pipe one in" in found.err


def test_a_closed_standard_input_pipes_nothing_in(run: Run, tiny: str) -> None:
    given = run("run", tiny, "Hi", "-n", "5")
    command = [sys.executable, "-m", "edgellm", "run", tiny, "Hi", "-n", "5"]
    closed = subprocess.run(["sh", "-c", '"$@" <&-', "sh", *command], capture_output=True, text=True, check=True)
    assert closed.stdout == given.out


def test_no_prompt_in_a_terminal_opens_a_chat(run: Run, tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(io, "TextIOWrapper", Terminal)
    asked = run("run", tiny, "-n", "9", stdin=b"Hi there\nAnd again\n")
    assert (asked.code, asked.err) == (0, "") and asked.out
    assert asked.out == run("chat", tiny, "-n", "9", stdin=b"Hi there\nAnd again\n").out


@pytest.mark.parametrize("options", [["--raw"], ["--json"], ["--json-object"]])
def test_a_chat_takes_no_options_of_one_answer(
    run: Run, tiny: str, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(io, "TextIOWrapper", Terminal)
    found = run("run", tiny, *options)
    assert found.code == 2 and "needs a prompt: edgellm run tiny PROMPT" in found.err


def test_a_prompt_longer_than_the_context(run: Run, tiny: str) -> None:
    found = run("run", tiny, "--raw", "--context", "8", "0123456789")
    assert (found.code, found.out) == (2, "")
    assert "10 tokens" in found.err and "holds 8" in found.err


@pytest.mark.parametrize("as_json", [False, True])
def test_interrupt_ends_the_answer_cleanly(run: Run, tiny: str, monkeypatch: pytest.MonkeyPatch, as_json: bool) -> None:
    whole = json.loads(run("run", tiny, "Hi", "-n", "50", "--json", *LONG).out)
    handler = signal.getsignal(signal.SIGINT)  # SIG_IGN in what a shell starts in the background
    step, steps = Stream.__next__, 0

    def next_with_interrupt(stream: Stream) -> Piece:
        nonlocal steps
        steps += 1
        if steps == 5:
            signal.raise_signal(signal.SIGINT)
        return step(stream)

    monkeypatch.setattr(Stream, "__next__", next_with_interrupt)
    found = run("run", tiny, "Hi", "-n", "50", *LONG, *(["--json"] if as_json else []))
    assert found.code == 130 and found.err == ""
    if as_json:
        cut = json.loads(found.out)
        assert cut["finish_reason"] == "cancelled"
        count = len(cut["token_ids"])  # those that the last step drafted are there too
        assert 4 <= count < 30 and cut["token_ids"] == whole["token_ids"][:count]
    else:
        assert found.out.endswith("\n") and whole["text"].startswith(found.out[:-1])
    assert signal.getsignal(signal.SIGINT) is handler


def test_an_answer_that_fills_the_context_is_told_from_one_as_long_as_asked(tiny_model: Model) -> None:
    never = dict.fromkeys(tiny_model.tokenizer.stop_ids, -1000.0)
    asked = SamplingParams(max_tokens=3, logit_bias=never)
    assert not filled_context(answer(tiny_model.generate("a", asked)), asked)
    full = SamplingParams(logit_bias=never)
    assert filled_context(answer(tiny_model.generate("a", full)), full)


def test_a_gguf_is_packed_on_the_fly(run: Run, tiny: str, tiny_gguf: object) -> None:
    assert run("run", str(tiny_gguf), "Hi", "-n", "9").out == run("run", tiny, "Hi", "-n", "9").out


def test_interrupt_while_loading(run: Run, tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*args: object, **options: object) -> Model:
        raise KeyboardInterrupt

    monkeypatch.setattr(edgellm, "load", load)
    found = run("run", tiny, "Hi")
    assert (found.code, found.out, found.err) == (130, "", "")


def test_kv_memory_is_a_size(run: Run, tiny: str) -> None:
    parser = ArgumentParser()
    add_engine_options(parser)
    sizes = {"512M": 512 << 20, "2G": 2 << 30, "1.5k": 1536, "7": 7}
    for text, expected in sizes.items():
        assert parser.parse_args(["--kv-memory", text]).kv_memory == expected
    too_little = run("run", tiny, "Hi", "--kv-memory", "1K")
    assert (too_little.code, too_little.out) == (2, "") and "kv_memory 1024" in too_little.err
    for text in ("much", "1T", "", "G", "nan"):
        assert run("run", tiny, "Hi", "--kv-memory", text).code == 2


def test_a_full_context_shifts_where_it_is_asked_to(run: Run, tiny: str) -> None:
    shift = ("--context", "40", "--context-policy", "shift", "--raw", "-n", "60", "--json", *LONG)
    found = json.loads(run("run", tiny, "0123456789", *shift).out)
    assert len(found["token_ids"]) == 60 and found["usage"]["num_dropped_tokens"] > 0
    refused = run("run", tiny, "0123456789", "--context", "40", "--raw", "-n", "60")
    assert refused.code == 2 and "the answer up to 60" in refused.err


def test_timings_tell_of_drafts(run: Run, tiny: str) -> None:
    says_x = ("--logit-bias", "90=1000", "-n", "40", "--timings", "Hi")
    assert "drafted tokens right" in run("run", tiny, *says_x, "--speculation", "on").err
    assert "drafted" not in run("run", tiny, *says_x, "--speculation", "off").err
