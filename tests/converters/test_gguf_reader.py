"""Our GGUF reader agrees with the gguf package's on sound files and refuses all others with one error."""

import random
import struct
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path

import gguf
import numpy as np
import pytest

from edgellm.converters.gguf_reader import open_gguf
from edgellm.errors import GGUFError
from tests.tiny import make_tiny_gguf, tiny_tokens

SHARED = Path(__file__).parents[3] / "shared" / "tokenizers"
U8, I8, U16, U32, F32, BOOL, STRING, ARRAY, U64 = 0, 1, 2, 4, 6, 7, 8, 9, 10
HUGE = [1 << 20, 1 << 31, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]


def everything(writer: gguf.GGUFWriter) -> None:
    """Metadata of every type, and tensors of every rank."""
    writer.add_uint8("a.u8", 200)
    writer.add_int8("a.i8", -100)
    writer.add_uint16("a.u16", 60000)
    writer.add_int16("a.i16", -30000)
    writer.add_int32("a.i32", -(1 << 31))
    writer.add_uint64("a.u64", (1 << 64) - 1)
    writer.add_int64("a.i64", -(1 << 63))
    writer.add_float64("a.f64", 1e300)
    writer.add_bool("a.true", True)
    writer.add_string("a.text", "naïve ☃ 𝄞")
    writer.add_array("a.bools", [True, False])
    writer.add_array("a.floats", [0.5, -1.25])
    for rank in range(1, 5):
        shape = tuple(range(2, 2 + rank))
        writer.add_tensor(f"rank{rank}", np.arange(np.prod(shape), dtype=np.float32).reshape(shape))
    writer.add_tensor("empty.name.follows", np.ones(1, np.float16))
    writer.add_tensor("", np.ones(3, np.int8))


def assert_same_as_package(path: Path) -> None:
    ours, theirs = open_gguf(path), gguf.GGUFReader(path)
    expected = {key: field.contents() for key, field in theirs.fields.items() if not key.startswith("GGUF.")}
    assert ours.metadata == expected
    assert {key: type(value) for key, value in ours.metadata.items()} == {k: type(v) for k, v in expected.items()}
    assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        mine = ours.tensors[tensor.name]
        assert mine.type == tensor.tensor_type
        assert mine.shape == tuple(tensor.shape.tolist()[::-1])
        assert mine.data.tobytes() == tensor.data.tobytes()
        assert not mine.data.flags.writeable


def test_agrees_with_the_gguf_package(tmp_path: Path) -> None:
    assert_same_as_package(make_tiny_gguf(tmp_path / "t.gguf", tied=False, rope_factors=True, change=everything))


def test_vocabulary_only(tmp_path: Path) -> None:
    file = open_gguf(make_tiny_gguf(tmp_path / "t.gguf", tensors=False))
    assert file.tensors == {}
    assert file.metadata["tokenizer.ggml.tokens"] == tiny_tokens()


@pytest.mark.skipif(not SHARED.exists(), reason="the shared vocabularies are not here")
def test_real_vocabularies() -> None:
    assert_same_as_package(SHARED / "ggml-vocab-llama-spm.gguf")
    bpe = open_gguf(SHARED / "ggml-vocab-llama-bpe.gguf")  # the gguf package takes 7 s for this one
    assert len(bpe.metadata["tokenizer.ggml.tokens"]) == 128256
    assert len(bpe.metadata["tokenizer.ggml.merges"]) == 280147


# --- hostile files -------------------------------------------------------------------------------------------------


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def entry(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def array(kind: int, count: int, data: bytes) -> bytes:
    return struct.pack("<IQ", kind, count) + data


def info(name: str, dimensions: list[int], kind: int, offset: int, rank: int | None = None) -> bytes:
    rank = len(dimensions) if rank is None else rank
    return text(name) + struct.pack(f"<I{len(dimensions)}QIQ", rank, *dimensions, kind, offset)


def document(
    entries: Sequence[bytes] = (),
    infos: Sequence[bytes] = (),
    data: int = 0,
    *,
    counts: tuple[int, int] | None = None,
    version: int = 3,
    magic: bytes = b"GGUF",
) -> bytes:
    """A GGUF file by hand with `data` bytes of tensor data."""
    counts = counts or (len(infos), len(entries))
    head = magic + struct.pack("<IQQ", version, *counts) + b"".join(entries) + b"".join(infos)
    return head + b"\0" * (-len(head) % 32) + b"\0" * data


def refuse(path: Path, data: bytes, match: str) -> None:
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(GGUFError, match=match) as caught:
            open_gguf(path)
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()
    assert str(path) in str(caught.value)
    assert "get it again" in str(caught.value)


def test_smallest_sound_files(tmp_path: Path) -> None:
    path = tmp_path / "t.gguf"
    path.write_bytes(document([entry("a", U8, b"\7"), entry("b", ARRAY, array(STRING, 0, b""))], version=2))
    assert open_gguf(path).metadata == {"a": 7, "b": []}
    path.write_bytes(document([], [info("t", [2, 3], 0, 0)], 24))
    assert open_gguf(path).tensors["t"].shape == (3, 2)


REFUSED: list[tuple[str, bytes, str]] = [
    ("magic", document(magic=b"GGML"), "begins with b'GGML'"),
    ("version 1", document(version=1), "version 1 "),
    ("big endian", document(version=3 << 24), "big endian"),
    ("type", document([entry("a", 13, b"\0" * 64)]), "'a' has the unknown type 13"),
    ("array type", document([entry("a", ARRAY, array(13, 1, b"\0" * 64))]), "type 13"),
    ("nested", document([entry("a", ARRAY, array(ARRAY, 1, array(U8, 1, b"\0")))]), "nested"),
    ("bool", document([entry("a", BOOL, b"\2")]), "neither true nor false"),
    ("bools", document([entry("a", ARRAY, array(BOOL, 2, b"\1\2"))]), "neither true nor false"),
    ("twice", document([entry("a", U8, b"\1")] * 2), "'a' occurs twice"),
    ("UTF-8", document([entry("a", STRING, text(b"\xff"))]), "not UTF-8"),
    ("UTF-8 key", document([text(b"\xc3") + struct.pack("<IB", U8, 1)]), "not UTF-8"),
    ("alignment 0", document([entry("general.alignment", U32, struct.pack("<I", 0))]), "alignment 0 "),
    ("alignment 48", document([entry("general.alignment", U32, struct.pack("<I", 48))]), "alignment 48 "),
    ("alignment huge", document([entry("general.alignment", U32, struct.pack("<I", 1 << 31))]), "alignment"),
    ("alignment text", document([entry("general.alignment", STRING, text("32"))]), "alignment '32'"),
    ("tensor twice", document([], [info("t", [8], 0, 0), info("t", [8], 0, 32)], 64), "'t' occurs twice"),
    ("rank 0", document([], [info("t", [], 0, 0)], 64), "0 dimensions"),
    ("rank 5", document([], [info("t", [1] * 5, 0, 0)], 64), "5 dimensions"),
    ("rank huge", document([], [info("t", [1], 0, 0, rank=(1 << 32) - 1)], 64), "4294967295 dimensions"),
    ("zero", document([], [info("t", [0, 8], 0, 0)], 64), "shape"),
    ("tensor type", document([], [info("t", [8], 4, 0)], 64), "unknown type 4"),
    ("blocks", document([], [info("t", [48], 8, 0)], 64), "whole blocks of 32"),
    ("past the end", document([], [info("t", [8, 8], 0, 0)], 255), "ends at byte"),
    ("offset", document([], [info("t", [8], 0, 32)], 63), "ends at byte"),
    ("overlap", document([], [info("t", [16], 0, 0), info("u", [8], 0, 32)], 64), "overlaps"),
    ("same place", document([], [info("t", [8], 0, 0), info("u", [8], 0, 0)], 64), "overlaps"),
    ("misaligned", document([], [info("t", [8], 0, 16)], 64), "multiple of 32"),
]


@pytest.mark.parametrize(("data", "match"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_refused(tmp_path: Path, data: bytes, match: str) -> None:
    refuse(tmp_path / "t.gguf", data, match)


HUGE_CASES: dict[str, Callable[[int], bytes]] = {
    "tensors": lambda n: document(counts=(n, 0), data=1000),
    "entries": lambda n: document(counts=(0, n), data=1000),
    "key": lambda n: document([struct.pack("<Q", n) + b"abc"], data=1000),
    "string": lambda n: document([entry("a", STRING, struct.pack("<Q", n) + b"abc")], data=1000),
    "strings": lambda n: document([entry("a", ARRAY, array(STRING, n, text("x")))], data=1000),
    "bytes": lambda n: document([entry("a", ARRAY, array(U8, n, b"x"))], data=1000),
    "numbers": lambda n: document([entry("a", ARRAY, array(U64, n, b"x" * 8))], data=1000),
    "tensor name": lambda n: document([], [struct.pack("<Q", n) + b"abc"], data=1000),
    "one dimension": lambda n: document([], [info("t", [n], 0, 0)], data=1000),
    "two dimensions": lambda n: document([], [info("t", [n, n], 0, 0)], data=1000),
    "product": lambda n: document([], [info("t", [n, n, n, n], 24, 0)], data=1000),
    "tensor offset": lambda n: document([], [info("t", [8], 0, n)], data=1000),
}


@pytest.mark.parametrize("number", HUGE)
@pytest.mark.parametrize("case", HUGE_CASES)
def test_huge_numbers_are_refused_at_once(tmp_path: Path, case: str, number: int) -> None:
    refuse(tmp_path / "t.gguf", HUGE_CASES[case](number), "t.gguf")


def test_many_array_elements_in_all_are_refused(tmp_path: Path) -> None:
    half = array(U8, 3 << 20, b"\0" * (3 << 20))
    (tmp_path / "t.gguf").write_bytes(document([entry("a", ARRAY, half), entry("b", ARRAY, half)]))
    with pytest.raises(GGUFError, match="'b' has 3145728 elements"):
        open_gguf(tmp_path / "t.gguf")


def test_many_entries_are_refused(tmp_path: Path) -> None:
    entries = [entry(f"{number}", U8, b"\0") for number in range(70000)]
    refuse(tmp_path / "t.gguf", document(entries), "70000 metadata entries")


def test_truncated_anywhere(tmp_path: Path) -> None:
    path = make_tiny_gguf(tmp_path / "t.gguf", change=everything)
    data = path.read_bytes()
    end = len(data) - 32  # the last tensor is shorter than the padding that the package writes after it
    for cut in [*range(400), *random.Random(1).sample(range(end), 300)]:
        path.write_bytes(data[:cut])
        with pytest.raises(GGUFError):
            open_gguf(path)


def test_random_damage_gives_only_gguf_errors(tmp_path: Path) -> None:
    """Damage may be harmless (a letter of a token); then the file must read as the damage says."""
    path = make_tiny_gguf(tmp_path / "t.gguf", change=everything)
    data = path.read_bytes()
    head = data.index(b"token_embd") + 2500
    rng = random.Random(3)
    refused = 0
    for _ in range(1500):
        changed = bytearray(data)
        for _ in range(rng.choice([1, 1, 4])):
            position = rng.randrange(head)
            width = rng.choice([1, 1, 4, 8])
            changed[position : position + width] = rng.choice([b"\0" * width, b"\xff" * width, rng.randbytes(width)])
        path.write_bytes(changed[: rng.choice([len(data), rng.randrange(len(data))])])
        try:
            file = open_gguf(path)
        except GGUFError:
            refused += 1
        else:
            assert all(tensor.data[-1] >= 0 for tensor in file.tensors.values())
    assert 400 < refused < 1500


def test_no_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(GGUFError, match="check the path"):
            open_gguf(path)
