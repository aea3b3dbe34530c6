"""Makes tiny toy hybrids on the spot; who imports it has the family registered."""

from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as GGMLType

from edgellm.families import register
from edgellm.kernels.units import Unit
from tests.edgellm.families.hybrid import FAMILY, SOURCE
from tests.tiny import add_tokenizer, tiny_tokens

register(FAMILY)
UNIT = Unit("toyhybrid", SOURCE)
KINDS = "window conv linear full"
WINDOW = 48  # tokens: its edge goes through the middle of blocks


def make_hybrid_gguf(
    path: Path, *, seed: int = 0, layers: int = 4, kinds: str = KINDS, context: int = 512, window: int = WINDOW
) -> Path:
    """Write a GGUF of random weights, Q4_1, with the tokenizer of the tiny llama."""
    rng = np.random.default_rng(seed)
    counts = {
        "layers": layers, "width": 64, "heads": 2, "head_size": 32, "key_size": 16, "window": window, "ffn_width": 96,
        "context": context,
    }  # fmt: skip
    writer = gguf.GGUFWriter(path, FAMILY.name)
    writer.add_name("Toy Hybrid")
    writer.add_string(f"{FAMILY.name}.kinds", kinds)
    for name, count in counts.items():
        writer.add_uint32(f"{FAMILY.name}.{name}", count)
    add_tokenizer(writer)
    config = {"architecture": FAMILY.name, "kinds": kinds, "vocabulary": len(tiny_tokens()), **counts}
    for spec in FAMILY.network(config).tensors():
        if spec.is_matrix:
            values = rng.standard_normal(spec.shape) * (1 if spec.name == "embedding" else spec.shape[1] ** -0.5)
            kind = GGMLType.Q8_0 if spec.name == "embedding" else GGMLType.Q4_1
            quantized = gguf.quants.quantize(values.astype(np.float32), kind)
            writer.add_tensor(spec.name, quantized, raw_dtype=kind)
        else:
            writer.add_tensor(spec.name, rng.uniform(0.5, 1.5, spec.shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
