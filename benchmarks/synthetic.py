"""Makes a GGUF of a real model's shape with random weights, so that speed is not tuned to one small model.

Run:  python benchmarks/synthetic.py 1b FILE.gguf     shapes: 1b (Llama-3.2-1B), 7b (Llama-2-7B)

The body is Q4_0, the embedding and the head are Q8_0. What it says is noise; how fast it says it is not.
Then:  edgellm pull FILE.gguf --name NAME;  edgellm bench NAME --against FILE.gguf
"""

import sys
from pathlib import Path
from typing import NamedTuple

import gguf
import numpy as np
from gguf import GGMLQuantizationType


class Shape(NamedTuple):
    vocabulary: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    ffn_width: int
    tied: bool


SHAPES = {
    "1b": Shape(128256, 2048, 16, 32, 8, 8192, True),
    "7b": Shape(32000, 4096, 32, 32, 32, 11008, False),
}


def byte_characters() -> list[str]:
    """GPT-2's text for each byte."""
    printing = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte if byte in printing else next(others)) for byte in range(256)]


def random_blocks(rng: np.random.Generator, rows: int, columns: int, kind: GGMLQuantizationType) -> np.ndarray:
    """Rows of blocks of 32 weights: a float16 scale, then random codes."""
    code_bytes = 16 if kind == GGMLQuantizationType.Q4_0 else 32
    blocks = rng.integers(0, 256, (rows, columns // 32, 2 + code_bytes), np.uint8)
    scale = np.float16(columns**-0.5 / (4.6 if code_bytes == 16 else 74))
    blocks[:, :, :2] = np.frombuffer(scale.tobytes(), np.uint8)
    return blocks.reshape(rows, -1)


def main(name: str, path: str) -> None:
    shape = SHAPES[name]
    rng = np.random.default_rng(0)
    head_size = shape.width // shape.heads
    writer = gguf.GGUFWriter(Path(path), "llama")
    writer.add_name(f"synthetic {name}")
    writer.add_block_count(shape.layers)
    writer.add_context_length(4096)
    writer.add_embedding_length(shape.width)
    writer.add_feed_forward_length(shape.ffn_width)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(head_size)
    writer.add_layer_norm_rms_eps(1e-5)
    letters = byte_characters()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    letters.append("th")
    writer.add_token_list([*letters, *(f"token{i}" for i in range(shape.vocabulary - len(letters)))])
    writer.add_token_types([gguf.TokenType.NORMAL] * shape.vocabulary)
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)

    def matrix(name: str, rows: int, columns: int, kind: GGMLQuantizationType = GGMLQuantizationType.Q4_0) -> None:
        writer.add_tensor(f"{name}.weight", random_blocks(rng, rows, columns, kind), raw_dtype=kind)

    matrix("token_embd", shape.vocabulary, shape.width, GGMLQuantizationType.Q8_0)
    for layer in range(shape.layers):
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{norm}.weight", np.ones(shape.width, np.float32))
        for part, rows, columns in (
            ("attn_q", shape.width, shape.width),
            ("attn_k", shape.kv_heads * head_size, shape.width),
            ("attn_v", shape.kv_heads * head_size, shape.width),
            ("attn_output", shape.width, shape.width),
            ("ffn_gate", shape.ffn_width, shape.width),
            ("ffn_up", shape.ffn_width, shape.width),
            ("ffn_down", shape.width, shape.ffn_width),
        ):
            matrix(f"blk.{layer}.{part}", rows, columns)
    writer.add_tensor("output_norm.weight", np.ones(shape.width, np.float32))
    if not shape.tied:
        matrix("output", shape.vocabulary, shape.width, GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
