"""Vocabularies small enough to check by hand."""

from edgellm.tokenizer import Vocabulary
from edgellm.tokenizer.bpe import BYTES
from edgellm.tokenizer.vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED

BPE_MERGES = ["h e", "l l", "he ll", "hell o", "\u0120 w", "1 2", "12 3", "< |"]  # \u0120 is a space
BPE_SPECIAL = {"<|im_start|>": CONTROL, "<|im_end|>": CONTROL, "<|im": CONTROL, "<tool>": USER_DEFINED}
SPM_WORDS = ["\u2581", "h", "e", "l", "o", "he", "ll", "hell", "hello", "\u2581hello", "a", "\u2581a"]


def bpe_metadata(**changes: object) -> dict[str, object]:
    """GGUF metadata: ids 0..255 are the bytes (in the order of BYTES), then come the merges and the special tokens."""
    merged = [merge.replace(" ", "") for merge in BPE_MERGES]
    tokens = [*BYTES, *merged, *BPE_SPECIAL]
    entries: dict[str, object] = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": tokens,
        "token_type": [NORMAL] * (len(tokens) - len(BPE_SPECIAL)) + list(BPE_SPECIAL.values()),
        "merges": list(BPE_MERGES),
        "bos_token_id": tokens.index("<|im_start|>"),
        "eos_token_id": tokens.index("<|im_end|>"),
        "add_bos_token": False,
    }
    return _keyed(entries | changes)


def spm_metadata(**changes: object) -> dict[str, object]:
    """GGUF metadata: 0 <unk>, 1 <s>, 2 </s>, then 256 bytes, the words (longer ones first in merging), a tool mark."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *SPM_WORDS, "<tool>"]
    entries: dict[str, object] = {
        "model": "llama",
        "tokens": tokens,
        "token_type": [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * len(SPM_WORDS) + [USER_DEFINED],
        "scores": [float(len(token)) for token in tokens],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
    }
    return _keyed(entries | changes)


def bpe_vocabulary(**changes: object) -> Vocabulary:
    return Vocabulary.from_gguf(bpe_metadata(**changes))


def spm_vocabulary(**changes: object) -> Vocabulary:
    return Vocabulary.from_gguf(spm_metadata(**changes))


def _keyed(entries: dict[str, object]) -> dict[str, object]:
    """A change to None takes the entry away."""
    return {f"tokenizer.ggml.{name}": value for name, value in entries.items() if value is not None}
