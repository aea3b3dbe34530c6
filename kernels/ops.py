"""The operations of a step: read this first.

A model is a *step program*, a table of records of int64 words: the address of a kernel, whether the team meets at a
barrier before it, and the operands named below. Addresses are bytes; floats are carried as their bits. Every
kernel is `void(record, step, thread, threads)` and does its thread's share.

A step works on R rows, each a token, its position and its sequence. Shapes are in the alphabet of edgellm/config.py.
Buffers:

    residual      float32 [R][D]     the stream that layers add to
    q             float32 [R][H*E]   queries, rotated and scaled, by log2(e) as well: attention takes powers of two
    activation    what a matrix product reads: rows quantized to INT8 with a scale per block of 32, see below
    logits        float32 [logit rows][V]
    kv            arenas of blocks of KV_BLOCK tokens; a block holds [layers][K][keys, values], see kv_formats/

An activation holds rows in tiles of T rows: as high as the register tile while rows last; the last tile has the least
height of `Target.heights` that holds the rest, and its empty rows a scale and a sum of 0. The tile of
rows r0..r0+T lies at r0 * C in the codes and r0 * C/32 * 24 in the meta bytes:

    codes    int8 [C/32][T][32]
    meta     [C/32][6][T]    float32 scale; float32 sum of the block's values; int32 -8 and -128 times the sum of its
                             codes; 4 bytes with an outlier's high part in the lane of its code; int32 its index

A value is scale * code, and an outlier's is scale * (code + 128 * high part); 4 bytes of zero: there is none.
"""

import numpy as np
from numpy.typing import NDArray

KV_BLOCK = 32  # tokens of a KV block
META_WORDS = 6  # 4 bytes each, of an activation's meta data for a block of a row
META_BYTES = 4 * META_WORDS
RESULT_HEADER = 16  # floats before what attention sums up: the largest score, the sum of weights
MAX_TILE_ROWS = 16
CHUNK = 256  # positions whose attention is summed before it is folded into the rest, in this order
SPAN_QUERIES = 24  # query vectors that attention handles together
QUERY_STRIDE = 136  # pairs from one query to the next: room for a head of 256, and no multiple of a cache way
OWN_ROWS = 2  # up to this many rows, every thread normalizes all of them for itself, which saves a barrier
SPLIT_ROWS = 16  # up to this many rows, attention splits positions over the team


class Record:
    """Names of the int64 words of a record; `record.name` is the byte offset of a word."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.set_of_names = frozenset(names)
        for index, name in enumerate(names):
            setattr(self, name, 8 * index)

    def __getattr__(self, name: str) -> int:
        raise AttributeError(f"record has no word {name!r}: {self.names}")

    def pack(self, **values: int) -> NDArray[np.int64]:
        """The record with these values; every word must be named, and only words."""
        assert set(values) == set(self.names), set(values) ^ set(self.names)
        return np.array([values[name] for name in self.names], np.int64)


HEAD = ("kernel", "barrier")  # the first words of every operation
NO_BARRIER, BARRIER, BARRIER_OF_MANY = 0, 1, 2  # the last: not when rows are few
OPERATION_WORDS = 24

# The rows at work. spans are int32 [spans][2]: first row and count of neighbours in one sequence, for attention;
# sequence_rows int32 [S][2]: the same of all rows of a sequence.
STEP = Record(
    "rows", "tokens", "positions", "sequences", "sequence_count", "sequence_rows", "spans", "span_count", "split",
    "few", "logit_count", "logit_rows", "samplers",
)  # fmt: skip

# A weight matrix begins with the kernels of its format; quants/ says what follows.
#     product(weight, panel, x, meta, blocks, tokens, out, outliers, count, asks_ahead)   out float32 [tokens][32]
#     row(weight, index, columns, out)                                                    out float32 [columns]
WEIGHT_HEAD = ("product", "row")

# Keys and values of a layer. A sequence's table is int32 [table_stride], the block of each KV_BLOCK tokens; the layer
# begins `offset` bytes into a block, a head `head_stride` bytes after the one before. Kernels of the format:
#     score(cache, queries, count, keys, next_keys, scratch, out)        out float32 [count][CHUNK], of one block, or of
#                                                                       the next as well for few queries
#     values(cache, weights, count, block, ahead, pairs, scratch, out)   out float32 [count][RESULT_HEADER + E] +=
CACHE = Record(
    "blocks", "tables", "table_stride", "block_stride", "offset", "head_stride", "head_size", "score", "values",
)  # fmt: skip

# A layer's state of a fixed size: that of sequence s is read from slot table[s][0] and written to slot table[s][1]
# (int32 [S][2]), which are never the same; slot 0 is all zeros. Slot n begins at slots + n * slot_stride.
RECURRENT = Record("slots", "table", "slot_stride")

# residual[r] = embedding[token of r]
EMBED = Record(*HEAD, "out", "weight", "width")

# out = quantized(x)
QUANTIZE = Record(*HEAD, "x", "out_codes", "out_meta", "width", "selected")

# out = quantized(x / rms(x) * weight); with `selected`, of the rows whose logits are wanted only. When rows are few and
# `own` is not 0, every thread writes, and the product after it reads, a copy of its own, OWN_ROWS rows long.
NORM = Record(
    *HEAD, "x", "weight", "out_codes", "out_meta", "own_codes", "own_meta", "width", "epsilon", "selected",
)  # fmt: skip

# For each part: epilogue(activation @ weight.T). Parts share the activation and the team's work. An epilogue is a
# kernel(operands, step, y, second, start, tokens, rows, panel): y float32 [rows][32] are outputs 32 * panel.. of rows
# start.. , in a tile of `tokens` rows; `second` are the outputs of the other weight, where there is one.
PRODUCT = Record(
    *HEAD, "parts", "part_count", "x_codes", "x_meta", "own_codes", "own_meta", "columns", "selected",
    "scratch", "scratch_stride", "outliers", "outliers_stride",
)  # fmt: skip
PART = Record("weight", "second", "panels", "epilogue", "operands")

# Epilogues and their operands
EPILOGUES = {
    "store": Record("out", "stride"),  # out f32 [.][stride] = y
    "add": Record("out", "stride"),  # out f32 [.][stride] += y
    "swiglu": Record("out_codes", "out_meta", "stride"),  # out = quantized(silu(y) * second)
    "query": Record("out", "stride", "rope", "head_size", "scale"),  # out = rope(y) * scale, as the KV format wants it
    "key": Record("rope", "state"),  # rope(y), into the cache
    "value": Record("state"),  # y, into the cache
}

# out = quantized(softmax(q keys) values); partial results go through `partials` when positions are split. With a
# `window`, a row sees that many positions, its own the last; with 0 all up to its own.
ATTEND = Record(
    *HEAD, "q", "out_codes", "out_meta", "heads", "kv_heads", "head_size", "state", "window", "partials", "chunks",
    "scratch", "scratch_stride",
)  # fmt: skip

# Chooses a token for each logit row that has a SAMPLER (0: its logits alone are wanted), and writes it to `chosen`. The
# row is changed: first `mask` (int32 [V/32], bit i of word i/32; 0 bits get -inf) and `bias` (int32 [n][2]: token, bits
# of a float), then the samplers of `chain`, 4 bits each, the first lowest, then a draw of the number `draw`, or the
# largest logit where the temperature is 0.
#     text        int32 [text_count]  prompt and answer so far; the first `prompt_count` are the prompt
#     breakers    int32 [V/32]  bit mask of the tokens at which DRY's repetitions end
#     tokens, keys, weights, counts, raw    4 bytes [V + SAMPLER_PADDING], to work in; counts are 0 between steps; no
#                 logprobs are wanted where the address of raw is 0
#     logprobs    the chosen token's as a float, then [top_logprobs][2] token (-1: no more) and float, likeliest first
# A sampler that `follows` is that of the row before one token later: it takes over its `next_mu`, so it goes after it.
SAMPLE = Record(*HEAD, "logits", "stride", "vocabulary")
SAMPLER = Record(
    "chain", "mask", "bias", "bias_count", "text", "text_count", "prompt_count",
    "repetition", "presence", "frequency", "penalty_last_n",
    "dry_multiplier", "dry_base", "dry_allowed_length", "dry_last_n", "breakers",
    "top_k", "typical_p", "top_p", "min_p", "xtc_threshold", "xtc_probability", "temperature",
    "tau", "eta", "mu", "next_mu", "follows", "seed", "draw",
    "tokens", "keys", "weights", "counts", "raw", "top_logprobs", "logprobs", "chosen",
)  # fmt: skip
XTC_STREAM = 0x5851F42D4C957F2D  # seed ^ this is XTC's own seed: its random numbers are not the draw's
DRY_LONGEST = 64  # tokens; DRY takes a longer repetition for one of this length
SAMPLER_PADDING = 32  # the kernel reads and writes whole vectors, and a few for itself

# Samplers as a chain names them: by their place here, from 1
SAMPLERS = (
    "penalties", "dry", "top_k", "typical_p", "top_p", "min_p", "xtc", "temperature", "mirostat",
)  # fmt: skip

# A sum over the data, int64 [bytes/8]; out int64 [threads][8]
READ = Record(*HEAD, "data", "bytes", "out")

# The team: every word on a cache line of its own where threads wait on it
TEAM = Record(
    "epoch", *(f"_{i}" for i in range(7)), "arrivals", *(f"_{i}" for i in range(7, 14)), "generation",
    *(f"_{i}" for i in range(14, 21)), "program", "count", "step", "threads", "spins", "stop", "times",
)  # fmt: skip
TEAM_WORDS = 32
