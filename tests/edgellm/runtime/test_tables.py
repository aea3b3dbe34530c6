"""The CPU's operation tables are those that the Llama program had when it was written by hand, word for word.

tables/ holds them as text, made by the version that had no graph, for the shapes of shapes.py. Of the layers, which are
all alike, one is shown.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgellm.kernels import ops
from edgellm.runtime.graph import Value
from tests.edgellm.runtime.shapes import CONFIGS, Shape

BASES = {arena: (at + 1) << 44 for at, arena in enumerate(("weights", "work", "tables", "step", "blocks.0"))}
BARRIERS = {ops.NO_BARRIER: "no barrier", ops.BARRIER: "barrier", ops.BARRIER_OF_MANY: "barrier of many"}
OLD_NAMES = {"q": "query", "head": "logits"}  # of values


class Reader:
    """Says what the words of a bound table point to."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        names = {*shape.program.calls.values()}
        self.kernels = {name: number + 1 for number, name in enumerate(sorted(names))}
        self.kernel_names = {number: name for name, number in self.kernels.items()}
        self.words = shape.program.bind(BASES, self.kernels)
        self.begin = self.words.ctypes.data
        self.places = {0: "none", BASES["tables"]: "rope"}
        for value, place in shape.plan.places.items():
            self._name(value, place.offset, place.meta, place.own, place.own_meta)
        self.places |= {BASES["weights"] + tensor.begin: name for name, tensor in shape.header.table.items()}

    def _name(self, value: Value, offset: int, meta: int, own: int | None, own_meta: int) -> None:
        name, work = OLD_NAMES.get(value.name, value.name), BASES["work"]
        self.places[work + offset] = name
        if value.is_quantized:
            self.places[work + meta] = f"{name} meta"
            if own is not None:
                self.places |= {work + own: f"{name} own", work + own_meta: f"{name} own meta"}

    def record(self, record: ops.Record, where: int) -> dict[str, int]:
        at = (where - self.begin) // 8
        return dict(zip(record.names, self.words[at : at + len(record.names)].tolist(), strict=True))

    def operation(self, number: int, layer: int) -> Iterator[str]:
        """The text of an operation; `layer` is shown as N."""
        where = self.begin + number * ops.OPERATION_WORDS * 8
        head = self.record(ops.Record(*ops.HEAD), where)
        kind = self.kernel_names[head["kernel"]]
        text = "\n".join(getattr(self, f"_{kind}")(where, layer))
        yield from f"{kind}, {BARRIERS[head['barrier']]}: {text}".replace(f"layers.{layer}.", "layers.N.").splitlines()

    def _embed(self, where: int, layer: int) -> Iterator[str]:
        r = self.record(ops.EMBED, where)
        yield f"{self._weight(r['weight'])}, width {r['width']} -> {self.places[r['out']]}"

    def _norm(self, where: int, layer: int) -> Iterator[str]:
        r = self.record(ops.NORM, where)
        out = " | ".join(self.places[r[name]] for name in ("out_codes", "out_meta", "own_codes", "own_meta"))
        x, weight = self.places[r["x"]], self.places[r["weight"]]
        sizes = f"width {r['width']}, epsilon {as_float(r['epsilon'])}, selected {r['selected']}"
        yield f"{x}, {weight}, {sizes} -> {out}"

    def _product(self, where: int, layer: int) -> Iterator[str]:
        r = self.record(ops.PRODUCT, where)
        x = " | ".join(self.places[r[name]] for name in ("x_codes", "x_meta", "own_codes", "own_meta"))
        strides = f"scratch {r['scratch_stride']}, outliers {r['outliers_stride']}"
        yield f"{x}, columns {r['columns']}, selected {r['selected']}, {strides}"
        for part in range(r["part_count"]):
            yield self._part(self.record(ops.PART, r["parts"] + part * len(ops.PART.names) * 8), layer)

    def _part(self, part: dict[str, int], layer: int) -> str:
        kernel = self.kernel_names[part["epilogue"]]
        name, _, kv_format = kernel.partition("_")
        record = ops.EPILOGUES[name]
        r = self.record(record, part["operands"])
        weights = self._weight(part["weight"]) + (f" with {self._weight(part['second'])}" if part["second"] else "")
        text = f"    {weights}, panels {part['panels']}: {name}"
        if name in ("query", "key"):
            text += f", {self.places[r['rope']]}"
        if name == "query":
            text += f", head size {r['head_size']}, scale {as_float(r['scale'])}, {kv_format}"
        if name in ("key", "value"):
            cache = self.record(ops.CACHE, r["state"])
            return f"{text}, head size {cache['head_size']} -> {self._cache(r['state'], layer)}"
        outs = [self.places[r[out]] for out in ("out", "out_codes", "out_meta") if out in record.names]
        return f"{text} -> {' | '.join(outs)}, stride {r['stride']}"

    def _attend(self, where: int, layer: int) -> Iterator[str]:
        r = self.record(ops.ATTEND, where)
        heads = f"heads {r['heads']}, kv heads {r['kv_heads']}, head size {r['head_size']}"
        rest = f"window {r['window']}, chunks {r['chunks']}, scratch {r['scratch_stride']}"
        out = f"{self.places[r['out_codes']]} | {self.places[r['out_meta']]}"
        yield f"{self.places[r['q']]}, {heads}, {self._cache(r['state'], layer)}, {rest} -> {out}"

    _combine = _attend

    def _sample(self, where: int, layer: int) -> Iterator[str]:
        r = self.record(ops.SAMPLE, where)
        yield f"{self.places[r['logits']]}, stride {r['stride']}, vocabulary {r['vocabulary']}"

    def _weight(self, where: int) -> str:
        """The matrix of a record, whose kernels must be those of its format."""
        quant = ops.Record(*ops.WEIGHT_HEAD, "codes")
        r = self.record(quant, where)
        name = self.places[r["codes"]].removesuffix(".codes")
        unit = self.shape.header.quants[name].unit
        assert [self.kernel_names[r[which]] for which in ops.WEIGHT_HEAD] == [f"product_{unit}", f"row_{unit}"]
        return name

    def _cache(self, where: int, layer: int) -> str:
        r = self.record(ops.CACHE, where)
        a_layer = self.shape.states.block_bytes // len(self.shape.network.layers)
        assert (r["blocks"], r["offset"]) == (BASES["blocks.0"], layer * a_layer)
        assert (r["tables"], r["table_stride"]) == (
            BASES["step"] + self.shape.step.tables[0],
            self.shape.step.table_stride,
        )
        kv_format = self.kernel_names[r["score"]].removeprefix("score_")
        assert self.kernel_names[r["values"]] == f"values_{kv_format}"
        sizes = f"{a_layer} a layer, {r['head_stride']} a head, {r['block_stride']} a block"
        return f"cache(layer N, {sizes}, {kv_format})"


def as_float(bits: int) -> str:
    return f"{np.int32(bits).view(np.float32):.9g}"


def render(shape: Shape) -> str:
    reader, layers = Reader(shape), len(shape.network.layers)
    count = len(shape.program.labels)
    each, rest = divmod(count - 4, layers)
    assert rest == 0
    texts = [
        [line for at in range(each) for line in reader.operation(1 + layer * each + at, layer)]
        for layer in range(layers)
    ]
    assert all(text == texts[0] for text in texts)
    lines = [*reader.operation(0, 0), f"layers 0..{layers - 1}, each as N:", *(f"  {line}" for line in texts[0])]
    lines += [line for at in range(count - 3, count) for line in reader.operation(at, layers)]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("name", CONFIGS)
def test_the_operation_table_is_the_one_written_by_hand(name: str) -> None:
    assert render(Shape(name)) == (Path(__file__).parent / "tables" / f"{name}.txt").read_text()
