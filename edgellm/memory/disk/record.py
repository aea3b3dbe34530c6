"""The record of one KV block in a segment: the format, defined once.

All numbers are little-endian. A record is a multiple of 64 bytes long, so that payloads can be mapped and used.

    bytes      field
    0          magic         b"edgekv\\r\\n"
    8          version       uint32
    12         num_tokens    uint32, 1 to MAX_TOKENS
    16         block_bytes   uint64, bytes of the payload
    24         checksum      16 bytes, of the payload
    40         block hash    32 bytes, of the model and all tokens up to the block's end
    72         parent hash   32 bytes, the hash of the block before it, or of the root of all texts
    104        model         32 bytes, fingerprint of the model file and the KV format
    136        text hash     32 bytes, of all tokens up to the block's end, without the model
    168        tokens        int32 [MAX_TOKENS], zeros after num_tokens
    296        zeros
    304        seal          16 bytes, blake2b of the 304 bytes before it
    320        payload       the block's keys and values
    ...        zeros, up to a multiple of 64
"""

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Data = bytes | bytearray | memoryview | NDArray[Any]  # contiguous

HASH_BYTES = 32
MAX_TOKENS = 32  # of a block
ALIGNMENT = 64  # bytes

_MAGIC = b"edgekv\r\n"
_VERSION = 1
_FIELDS = struct.Struct(f"<8sIIQ16s32s32s32s32s{4 * MAX_TOKENS}s8x")
_SEAL_BYTES = 16
HEADER_BYTES = _FIELDS.size + _SEAL_BYTES
_WORDS = 512  # of 8 bytes: the rows that `checksum` adds up are pages of 4096 bytes


@dataclass(frozen=True, slots=True)
class Header:
    """What a record says of its block; hashes are of HASH_BYTES."""

    block_hash: bytes
    parent_hash: bytes
    model: bytes
    text_hash: bytes
    token_data: bytes  # int32 [num_tokens]: a folder may hold thousands of records, a tuple takes ten times the memory
    block_bytes: int
    checksum: bytes = bytes(16)  # of the payload

    @property
    def num_tokens(self) -> int:
        return len(self.token_data) // 4

    @property
    def tokens(self) -> tuple[int, ...]:
        return struct.unpack(f"<{self.num_tokens}i", self.token_data)

    @property
    def record_bytes(self) -> int:
        return record_bytes(self.block_bytes)


def record_bytes(block_bytes: int) -> int:
    """The length of a record whose payload has block_bytes."""
    return HEADER_BYTES + -(-block_bytes // ALIGNMENT) * ALIGNMENT


def pack_tokens(tokens: Sequence[int]) -> bytes:
    """1 to MAX_TOKENS token ids as int32."""
    assert 1 <= len(tokens) <= MAX_TOKENS, len(tokens)
    return struct.pack(f"<{len(tokens)}i", *tokens)


def new_record(data: Data, block_bytes: int) -> NDArray[np.uint8]:
    """A record with a copy of the payload, and room for the header that `seal` writes."""
    payload = np.frombuffer(data, np.uint8)
    assert payload.size == block_bytes, (payload.size, block_bytes)
    record = np.empty(record_bytes(block_bytes), np.uint8)
    record[HEADER_BYTES : HEADER_BYTES + block_bytes] = payload
    record[HEADER_BYTES + block_bytes :] = 0
    return record


def seal(record: NDArray[np.uint8], header: Header) -> None:
    """Write the header into a record of `new_record`, with the checksum of the payload that lies there."""
    payload = record[HEADER_BYTES : HEADER_BYTES + header.block_bytes]
    fields = _FIELDS.pack(
        _MAGIC,
        _VERSION,
        header.num_tokens,
        header.block_bytes,
        checksum(payload),
        header.block_hash,
        header.parent_hash,
        header.model,
        header.text_hash,
        header.token_data,
    )
    record[:HEADER_BYTES] = np.frombuffer(fields + _digest(fields), np.uint8)


def unpack_header(data: bytes) -> Header | None:
    """The header in HEADER_BYTES of a file; None unless magic, version, seal and number of tokens are right."""
    fields = data[: _FIELDS.size]
    seal = data[_FIELDS.size :]
    if len(data) != HEADER_BYTES or seal != _digest(fields):
        return None
    magic, version, num_tokens, block_bytes, check, block_hash, parent_hash, model, text_hash, tokens = _FIELDS.unpack(
        fields
    )
    if magic != _MAGIC or version != _VERSION or not 1 <= num_tokens <= MAX_TOKENS:
        return None
    return Header(block_hash, parent_hash, model, text_hash, tokens[: 4 * num_tokens], block_bytes, check)


def checksum(payload: NDArray[np.uint8]) -> bytes:
    """16 bytes: a hash of all sums, modulo 2^64, of rows and of columns of the payload as uint64 [pages][512].

    Bytes after the last whole page go into the hash as they are. A change goes unseen only if it cancels in every
    row and in every column, so it takes four words at the corners of a rectangle, wrong by the same amount. Errors
    are what it is for, not forgers: who can write to the folder can compute any checksum.

    93 MB, 2,000 tokens at 1.5 MB a block, take 16 ms; zlib.crc32 takes 40 and blake2b 101.
    """
    whole = payload.size - payload.size % (8 * _WORDS)
    rows = payload[:whole].view("<u8").reshape(-1, _WORDS)
    digest = hashlib.blake2b(digest_size=_SEAL_BYTES)
    for part in (rows.sum(axis=0), rows.sum(axis=1), payload[whole:]):
        digest.update(part.data)
    return digest.digest()


def _digest(fields: bytes) -> bytes:
    return hashlib.blake2b(fields, digest_size=_SEAL_BYTES).digest()
