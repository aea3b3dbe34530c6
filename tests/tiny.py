"""Makes tiny whole models on the spot: a llama GGUF of random weights with a working byte-level BPE vocabulary."""

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as GGMLType

CONTROLS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]  # ids 0, 1, 2; the model ends its turn with 2
MERGES = ["t h", "i n", "e r", "a n", "Ġ t", "Ġ a", "th e", "Ġt h", "Ġth e", "o n", "Ġ i", "Ġi s"]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_characters() -> list[str]:
    """GPT-2's text for each byte: itself if it prints, else a character from 256 on."""
    printing = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte if byte in printing else next(others)) for byte in range(256)]


def tiny_tokens() -> list[str]:
    return CONTROLS + byte_characters() + [merge.replace(" ", "") for merge in MERGES]


def make_tiny_gguf(
    path: Path,
    *,
    seed: int = 0,
    layers: int = 2,
    width: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    head_size: int = 32,
    ffn: int = 96,
    context: int = 512,
    tied: bool = True,
    body: str = "Q4_0",
    embedding: str = "Q8_0",
    rope_factors: bool = False,
    tensors: bool = True,
    change: Callable[[gguf.GGUFWriter], None] | None = None,
) -> Path:
    """Write a llama GGUF; `body` and `embedding` (with the head) are GGUF types that the gguf package can write.

    tensors=False writes the vocabulary and metadata only; `change` may add metadata or tensors before all is written.
    """
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("Tiny Model")
    writer.add_license("apache-2.0")
    writer.add_block_count(layers)
    writer.add_context_length(context)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(ffn)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)
    writer.add_rope_dimension_count(head_size)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    add_tokenizer(writer)

    def add_matrix(name: str, rows: int, columns: int, kind: str, deviation: float) -> None:
        values = (rng.standard_normal((rows, columns)) * deviation).astype(np.float32)
        quantized = gguf.quants.quantize(values, GGMLType[kind])
        writer.add_tensor(f"{name}.weight", quantized, raw_dtype=GGMLType[kind])

    def add_norm(name: str) -> None:
        writer.add_tensor(f"{name}.weight", rng.uniform(0.5, 1.5, width).astype(np.float32))

    if tensors:
        vocabulary = len(tiny_tokens())
        query, key = heads * head_size, kv_heads * head_size
        add_matrix("token_embd", vocabulary, width, embedding, 1.0)
        for layer in range(layers):
            block = f"blk.{layer}"
            add_norm(f"{block}.attn_norm")
            add_matrix(f"{block}.attn_q", query, width, body, width**-0.5)
            add_matrix(f"{block}.attn_k", key, width, body, width**-0.5)
            add_matrix(f"{block}.attn_v", key, width, body, width**-0.5)
            add_matrix(f"{block}.attn_output", width, query, body, query**-0.5)
            add_norm(f"{block}.ffn_norm")
            add_matrix(f"{block}.ffn_gate", ffn, width, body, width**-0.5)
            add_matrix(f"{block}.ffn_up", ffn, width, body, width**-0.5)
            add_matrix(f"{block}.ffn_down", width, ffn, body, ffn**-0.5)
        add_norm("output_norm")
        if not tied:
            add_matrix("output", vocabulary, width, embedding, 1.0)
        if rope_factors:
            writer.add_tensor("rope_freqs.weight", rng.uniform(1.0, 8.0, head_size // 2).astype(np.float32))
    if change is not None:
        change(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_tokenizer(writer: gguf.GGUFWriter) -> None:
    tokens = tiny_tokens()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if token in CONTROLS else gguf.TokenType.NORMAL for token in tokens])
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)
