"""The step program of a model: which kernel runs on which memory, in which order. Written once, when a model loads.

    embed
    each layer:  norm | q k v, rotated and into the cache | attend | combine | output, added
                 norm | gate and up, activated             | down, added
    norm of the rows whose logits are wanted | head | sample

A bar is a barrier, and so is every line's beginning; behind a norm there is none when rows are few, since every thread
then normalizes them for itself.
"""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from edgellm.config import ModelConfig
from edgellm.kernels import ops
from edgellm.kernels.layouts import BLOCK, PANEL, Layout, padded_rows
from edgellm.memory.buffers import address, aligned_zeros
from edgellm.memory.kv import KVCache
from edgellm.model.rope import RopeTable
from edgellm.packed import PackedModel, Weight


class Activation:
    """Rows quantized for a matrix product; ops.py says how they lie."""

    def __init__(self, rows: int, columns: int, own_rows: int = 0) -> None:
        """`own_rows` is the room for threads' own copies."""
        self.codes, self.meta = _activation(rows, columns)
        self.own_codes: NDArray[np.int8] | None = None
        self.own_meta: NDArray[np.float32] | None = None
        if own_rows:
            self.own_codes, self.own_meta = _activation(own_rows, columns)


def _activation(rows: int, columns: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    rows += ops.MAX_TILE_ROWS - 1  # the last tile may have room for more
    return aligned_zeros(rows * columns, np.int8), aligned_zeros(rows * columns // BLOCK * ops.META_WORDS, np.float32)


class Buffers:
    """What a step writes, for up to `rows` rows, `logit_rows` of them with logits, by `threads` threads."""

    def __init__(self, config: ModelConfig, rows: int, logit_rows: int, threads: int, context: int) -> None:
        attention_width = config.heads * config.head_size
        self.residual = aligned_zeros((rows, config.width), np.float32)
        self.query = aligned_zeros((rows, attention_width), np.float32)
        self.normed = Activation(rows, config.width, own_rows=threads * ops.OWN_ROWS)
        self.attended = Activation(rows, attention_width)
        self.activated = Activation(rows, config.ffn_width)
        self.logits = aligned_zeros((logit_rows, padded_rows(config.vocabulary)), np.float32)
        self.chunks = -(-context // ops.CHUNK)
        result = ops.RESULT_HEADER + config.head_size
        split_rows = min(rows, ops.SPLIT_ROWS)
        self.partials = aligned_zeros(split_rows * config.heads * self.chunks * result, np.float32)
        queries = max(ops.SPAN_QUERIES, config.heads // config.kv_heads)
        attention = queries * (2 * ops.QUERY_STRIDE + 2 * ops.CHUNK + 2 * result) + config.head_size * ops.KV_BLOCK
        self.scratch_stride = 4 * max(attention, 2 * ops.MAX_TILE_ROWS * BLOCK)
        blocks = max(config.width, attention_width, config.ffn_width) // BLOCK
        self.outliers = aligned_zeros((threads, rows * (blocks + 1), 4), np.int32)
        self.scratch = aligned_zeros(threads * self.scratch_stride, np.uint8)


class ProgramWriter:
    """Writes the records of one model; keeps alive what they point to in `kept`."""

    def __init__(
        self, kernels: dict[str, int], packed: PackedModel, buffers: Buffers, cache: KVCache, rope: RopeTable
    ) -> None:
        self._kernels, self._packed, self._buffers, self._cache, self._rope = kernels, packed, buffers, cache, rope
        self.kept: list[object] = [packed, buffers, cache, rope]
        self.names: list[str] = []  # of the operations written, for people

    def write(self) -> NDArray[np.int64]:
        """The program, int64 [operations][OPERATION_WORDS]."""
        operations = list(self._operations())
        program = aligned_zeros((len(operations), ops.OPERATION_WORDS), np.int64)
        for row, (_, record) in zip(program, operations, strict=True):
            row[: len(record)] = record
        self.names = [name for name, _ in operations]
        return program

    def _operations(self) -> Iterator[tuple[str, NDArray[np.int64]]]:
        config, buffers = self._packed.config, self._buffers
        yield "embed", self._embed()
        for layer in range(config.layers):
            prefix = f"layers.{layer}"
            yield "norm", self._norm(f"{prefix}.attention.norm")
            yield "q k v", self._matmul(buffers.normed, config.width, self._query_key_value(layer))
            yield "attend", self._attention("attend", layer)
            yield "combine", self._attention("combine", layer)
            output = self._part(f"{prefix}.attention.output", ops.ADD, buffers.residual, config.width)
            yield "output", self._matmul(buffers.attended, config.heads * config.head_size, [output])
            yield "norm", self._norm(f"{prefix}.ffn.norm")
            yield "gate up", self._matmul(buffers.normed, config.width, [self._gate_up(layer)])
            down = self._part(f"{prefix}.ffn.down", ops.ADD, buffers.residual, config.width)
            yield "down", self._matmul(buffers.activated, config.ffn_width, [down])
        yield "norm", self._norm("norm", selected=1)
        head = "embedding" if config.tied_head else "head"
        part = self._part(head, ops.STORE, buffers.logits, buffers.logits.shape[1])
        yield "head", self._matmul(buffers.normed, config.width, [part], selected=1)
        yield (
            "sample",
            ops.SAMPLE.pack(
                kernel=self._kernels["sample"],
                barrier=ops.BARRIER,
                logits=address(buffers.logits),
                stride=buffers.logits.shape[1],
                vocabulary=config.vocabulary,
            ),
        )

    def _embed(self) -> NDArray[np.int64]:
        names = ("layout", "codes", "scales", "mins", "group")
        return ops.EMBED.pack(
            kernel=self._kernels["embed"],
            barrier=ops.NO_BARRIER,
            out=address(self._buffers.residual),
            width=self._packed.config.width,
            **dict(zip(names, weight_words(self._packed.weights["embedding"]), strict=True)),
        )

    def _norm(self, name: str, selected: int = 0) -> NDArray[np.int64]:
        return ops.NORM.pack(
            kernel=self._kernels["norm"],
            barrier=ops.BARRIER,
            x=address(self._buffers.residual),
            weight=address(self._packed.vectors[name]),
            out_codes=address(self._buffers.normed.codes),
            out_meta=address(self._buffers.normed.meta),
            own_codes=address(self._buffers.normed.own_codes),
            own_meta=address(self._buffers.normed.own_meta),
            width=self._packed.config.width,
            epsilon=float_bits(self._packed.config.norm_epsilon),
            selected=selected,
        )

    def _matmul(
        self, x: Activation, columns: int, parts: list[NDArray[np.int64]], selected: int = 0
    ) -> NDArray[np.int64]:
        table = np.stack(parts)
        self.kept.append(table)
        return ops.MATMUL.pack(
            kernel=self._kernels["matmul"],
            barrier=ops.BARRIER if x.own_codes is None else ops.BARRIER_OF_MANY,
            parts=address(table),
            part_count=len(parts),
            codes=address(x.codes),
            meta=address(x.meta),
            own_codes=address(x.own_codes),
            own_meta=address(x.own_meta),
            columns=columns,
            selected=selected,
            scratch=address(self._buffers.scratch),
            scratch_stride=self._buffers.scratch_stride,
            outliers=address(self._buffers.outliers),
            outliers_stride=self._buffers.outliers[0].nbytes,
        )

    def _query_key_value(self, layer: int) -> list[NDArray[np.int64]]:
        config, prefix = self._packed.config, f"layers.{layer}.attention"
        common = {
            "rope": address(self._rope.table),
            "head_size": config.head_size,
            "scale": float_bits(config.head_size**-0.5 * math.log2(math.e)),
            "kv_offset": layer * self._cache.layer_stride,
            "head_stride": self._cache.head_stride,
            "block_stride": self._cache.block_stride,
            "kv_int8": int(self._cache.dtype == "int8"),
        }
        return [
            self._part(f"{prefix}.q", ops.QUERY, self._buffers.query, self._buffers.query.shape[1], **common),
            self._part(f"{prefix}.k", ops.KEY, None, 0, **common),
            self._part(f"{prefix}.v", ops.VALUE, None, 0, **common),
        ]

    def _gate_up(self, layer: int) -> NDArray[np.int64]:
        names = ("up_layout", "up_codes", "up_scales", "up_mins", "up_group")
        up = dict(zip(names, weight_words(self._packed.weights[f"layers.{layer}.ffn.up"]), strict=True))
        activated = self._buffers.activated
        return self._part(
            f"layers.{layer}.ffn.gate",
            ops.SWIGLU,
            activated.codes,
            self._packed.config.ffn_width,
            out_meta=address(activated.meta),
            **up,
        )

    def _part(
        self, name: str, epilogue: int, out: NDArray[np.generic] | None, stride: int, **more: int
    ) -> NDArray[np.int64]:
        weight = self._packed.weights[name]
        layout, codes, scales, mins, group = weight_words(weight)
        words = dict.fromkeys(ops.PART.names, 0) | more
        words |= {"layout": layout, "codes": codes, "scales": scales, "mins": mins, "group": group}
        words |= {
            "panels": padded_rows(weight.rows) // PANEL,
            "epilogue": epilogue,
            "out": address(out),
            "stride": stride,
        }
        return ops.PART.pack(**words)

    def _attention(self, kernel: str, layer: int) -> NDArray[np.int64]:
        config, buffers = self._packed.config, self._buffers
        return ops.ATTEND.pack(
            kernel=self._kernels[kernel],
            barrier=ops.BARRIER,
            q=address(buffers.query),
            out_codes=address(buffers.attended.codes),
            out_meta=address(buffers.attended.meta),
            heads=config.heads,
            kv_heads=config.kv_heads,
            head_size=config.head_size,
            kv_offset=layer * self._cache.layer_stride,
            head_stride=self._cache.head_stride,
            block_stride=self._cache.block_stride,
            kv_int8=int(self._cache.dtype == "int8"),
            window=config.sliding_window or 0,
            partials=address(buffers.partials),
            chunks=buffers.chunks,
            scratch=address(buffers.scratch),
            scratch_stride=buffers.scratch_stride,
        )


def weight_words(weight: Weight) -> tuple[int, int, int, int, int]:
    """The five words that name a weight to kernels: layout, codes, scales, mins, group."""
    return (
        layout_number(weight.layout),
        address(weight.codes),
        address(weight.scales),
        address(weight.mins),
        weight.layout.group,
    )


def layout_number(layout: Layout) -> int:
    if layout.bits == 8:
        return ops.INT8
    return ops.INT4_ASYM if layout.asymmetric else ops.INT4


def float_bits(value: float) -> int:
    """The bits of a float32, as a word of a record carries them."""
    return int(np.float32(value).view(np.int32))
