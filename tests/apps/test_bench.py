"""edgellm bench counts what it says, and its figures hang together."""

import json
import statistics
from importlib.util import find_spec
from pathlib import Path

import pytest

from edgellm import Model, SamplingParams, Stream
from edgellm.apps.llama_cpp import PeerResult
from edgellm.apps.loading import load_kernels
from edgellm.apps.speed import Course, Speed, bytes_per_token, peak_rss_bytes
from edgellm.inspect import bandwidth
from edgellm.kernels.kv_formats import kv_formats
from edgellm.kernels.ops import KV_BLOCK
from edgellm.memory.layout import state_layout
from edgellm.packed.header import open_header
from edgellm.packed.read import open_packed
from edgellm.pull import pull
from edgellm.store import Store
from tests.apps.conftest import Run
from tests.tiny import make_tiny_gguf

SMALL = ("--prompt", "40", "--generate", "6", "--repeat", "3", "--threads", "1")
KEYS = {
    "model", "layout", "isa", "threads", "prefill_tokens_per_second", "decode_tokens_per_second", "first_token_ms",
    "peak_rss_bytes", "mapped_bytes", "bytes_per_token", "read_bandwidth_bytes_per_second", "bandwidth_fraction",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _fast_bandwidth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth, "BUFFER_BYTES", 1 << 22)


def test_json(run: Run, tiny: str) -> None:
    found = json.loads(run("bench", tiny, *SMALL, "--json").out)
    assert set(found) >= KEYS
    assert (found["threads"], found["prompt"], found["generate"]) == (1, 40, 6)
    assert found["mapped_bytes"] == Store().path(tiny).stat().st_size
    assert found["bytes_per_token"] == bytes_per_token(open_header(Store().path(tiny)), 40 + 6 // 2)
    assert found["layout"] == "int4-asym-g32+int8-g32"
    assert len(found["repeats"]) == 3
    for name in ("prefill_tokens_per_second", "decode_tokens_per_second", "first_token_ms"):
        assert found[name] == statistics.median(repeat[name] for repeat in found["repeats"]) > 0
    reached = found["decode_tokens_per_second"] * found["bytes_per_token"]
    assert found["bandwidth_fraction"] == pytest.approx(reached / found["read_bandwidth_bytes_per_second"])
    assert found["peak_rss_bytes"] > found["mapped_bytes"]


def test_answers_have_the_length_asked_for_and_prompts_differ(
    run: Run, tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams: list[Stream] = []
    generate = Model.generate

    def generate_and_keep(model: Model, prompt: list[int], params: SamplingParams) -> Stream:
        assert set(params.logit_bias) == model.tokenizer.stop_ids  # no answer ends early
        streams.append(generate(model, prompt, params))
        return streams[-1]

    monkeypatch.setattr(Model, "generate", generate_and_keep)
    assert run("bench", tiny, *SMALL, "--json").code == 0
    warm_ups, measured = streams[::2], streams[1::2]
    assert [(len(stream.prompt_token_ids), len(stream.token_ids)) for stream in warm_ups] == [(8, 2)] * 3
    assert [(len(stream.prompt_token_ids), len(stream.token_ids)) for stream in measured] == [(40, 6)] * 3
    assert len({tuple(stream.prompt_token_ids) for stream in measured}) == 3


def test_text_for_people(run: Run, tiny: str) -> None:
    found = run("bench", tiny, *SMALL)
    assert found.code == 0 and found.err == ""
    assert "prefill of 40" in found.out and "decode of 6" in found.out and "read bandwidth" in found.out


def test_a_profile_adds_up(run: Run, tiny: str) -> None:
    found = json.loads(run("bench", tiny, *SMALL, "--json", "--profile").out)
    header = open_header(Store().path(tiny))
    decode, prefill = (
        {operation["name"]: operation for operation in found["profile"][name]} for name in ("decode", "prefill")
    )
    assert sum(operation["count"] for operation in decode.values()) == 1 + 2 * 8 + 3  # two layers
    vectors = sum(tensor.nbytes for name, tensor in header.table.items() if tensor.dtype == "F32")
    # The token itself is read as well, beside the 40 before it.
    assert sum(operation["bytes"] for operation in decode.values()) + vectors == bytes_per_token(header, 41)
    assert prefill["down"]["products"] == 40 * decode["down"]["products"] == 40 * 2 * 64 * 96
    assert 0 < sum(operation["seconds"] for operation in decode.values()) < 1
    assert "q k v" in run("bench", tiny, *SMALL, "--profile").out


@pytest.mark.parametrize("options", [["--prompt", "0"], ["--generate", "1"], ["--repeat", "0"], ["--prompt", "600"]])
def test_options_out_of_range(run: Run, tiny: str, options: list[str]) -> None:
    found = run("bench", tiny, *SMALL, *options)
    assert (found.code, found.out) == (2, "") and options[1] in found.err


def test_against_compares_medians_of_repeats_in_turn(run: Run, tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    order = []
    run_course = Course.run

    def ours(course: Course) -> Speed:
        order.append("ours")
        return run_course(course)

    def theirs(gguf: Path, num_prompt_tokens: int, num_tokens: int, threads: int) -> PeerResult:
        order.append("theirs")
        assert (gguf, num_prompt_tokens, num_tokens, threads) == (Path("peer.gguf"), 40, 6, 1)
        return PeerResult("peer.gguf", Speed(100.0 * len(order), 10.0, 5.0), len(order))

    monkeypatch.setattr(Course, "run", ours)
    monkeypatch.setattr("edgellm.apps.commands.bench.measure_peer", theirs)
    found = json.loads(run("bench", tiny, *SMALL, "--json", "--against", "peer.gguf").out)
    assert order == ["ours", "theirs"] * 3
    peer = found["peer"]
    assert (peer["prefill_tokens_per_second"], peer["decode_tokens_per_second"], peer["peak_rss_bytes"]) == (400, 10, 6)
    assert [repeat["prefill_tokens_per_second"] for repeat in peer["repeats"]] == [200, 400, 600]
    assert found["ratio"]["prefill"] == found["prefill_tokens_per_second"] / 400
    assert found["ratio"]["decode"] == found["decode_tokens_per_second"] / 10
    assert "x in prefill" in run("bench", tiny, *SMALL, "--against", "peer.gguf").out


def test_without_llama_cpp_the_remedy_is_named(run: Run, tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgellm.apps.llama_cpp.find_spec", lambda name: None)
    found = run("bench", tiny, *SMALL, "--against", "peer.gguf")
    assert (found.code, found.out) == (2, "") and "pip install 'edgellm[bench]'" in found.err


@pytest.mark.skipif(find_spec("llama_cpp") is None, reason="needs the extra 'bench'")
def test_llama_cpp_is_measured(run: Run, tiny: str, tiny_gguf: Path, tmp_path: Path) -> None:
    found = json.loads(run("bench", tiny, *SMALL, "--json", "--against", tiny_gguf).out)
    assert len(found["peer"]["repeats"]) == 3 and found["peer"]["decode_tokens_per_second"] > 0
    (tmp_path / "bad.gguf").write_bytes(b"GGUF")
    failed = run("bench", tiny, *SMALL, "--against", tmp_path / "bad.gguf")
    assert failed.code == 1 and "llama.cpp failed on" in failed.err
    missing = run("bench", tiny, *SMALL, "--against", tmp_path / "none.gguf")
    assert (missing.code, missing.out) == (2, "") and "none.gguf: there is no such file" in missing.err


@pytest.mark.parametrize("tied", [True, False])
def test_bytes_of_a_token_are_the_weights_it_needs_and_its_past(tmp_path: Path, tied: bool) -> None:
    gguf = make_tiny_gguf(tmp_path / "tiny.gguf", tied=tied, body="Q4_1")
    path = pull(str(gguf), name="x", layout=None, store=Store(tmp_path), progress=lambda *stage: None)
    model = open_packed(path)
    layout = state_layout(model.network, kv_formats()["bf16"])
    needed = sum(weight.nbytes for name, weight in model.weights.items() if tied or name != "embedding") + sum(
        vector.nbytes for vector in model.vectors.values()
    )
    assert bytes_per_token(open_header(path), 0) == needed
    assert bytes_per_token(open_header(path), KV_BLOCK) == needed + layout.block_bytes


def test_peak_memory_sees_what_was_touched_and_given_back() -> None:
    before = peak_rss_bytes()
    size = before + (64 << 20)
    bytearray(size)
    assert peak_rss_bytes() >= size


def test_bandwidth_is_of_this_planet() -> None:
    assert 1e8 < bandwidth.measure(load_kernels(), 2, 2) < 1e13
