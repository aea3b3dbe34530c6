"""Texts to token ids and back."""

from edgellm.tokenizer.stream import StreamDecoder
from edgellm.tokenizer.tokenizer import Tokenizer
from edgellm.tokenizer.vocabulary import Vocabulary

__all__ = ["StreamDecoder", "Tokenizer", "Vocabulary", "open_tokenizer"]


def open_tokenizer(vocabulary: Vocabulary) -> Tokenizer:
    """The tokenizer for a vocabulary; TokenizerError where its parts do not fit together."""
    # Each kind has a package of its own, and importing both would double the time to the first token.
    if vocabulary.kind == "bpe":
        from edgellm.tokenizer.bpe import BPETokenizer

        return BPETokenizer(vocabulary)
    from edgellm.tokenizer.spm import SPMTokenizer

    return SPMTokenizer(vocabulary)
