"""The vocabulary as llguidance wants it: the bytes of every token, and how bytes become tokens."""

from typing import TYPE_CHECKING

from edgellm.errors import MissingExtraError, TokenizerError
from edgellm.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLTokenizer

# What llguidance's trie holds: deeper or larger, it panics
MAX_TOKEN_BYTES = 1000
MAX_BYTES = 1 << 22  # the largest vocabularies have half of it


class TokenTable:
    """Tokens by their bytes; a token without any, as all control tokens, is never part of a constrained text."""

    bos_token_id = None
    special_token_ids = ()

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Errors: TokenizerError."""
        if not tokenizer.stop_ids:
            raise TokenizerError("the vocabulary has no token that ends a text, so no constrained text could end")
        spellings = (tokenizer.inner_bytes(token) for token in range(tokenizer.vocabulary_size))
        self.tokens = [spelling if len(spelling) <= MAX_TOKEN_BYTES else b"" for spelling in spellings]
        if (total := sum(map(len, self.tokens))) > MAX_BYTES:
            raise TokenizerError(f"the vocabulary's tokens have {total} bytes, for constraints {MAX_BYTES} at most")
        for token in tokenizer.stop_ids:
            self.tokens[token] = b""
        self.eos_token_id = min(tokenizer.stop_ids)
        self._encode = tokenizer.encode_inner

    def __call__(self, text: bytes) -> list[int]:
        return self._encode(text.decode())


def token_trie(tokenizer: Tokenizer) -> "LLTokenizer":
    """Errors: MissingExtraError, TokenizerError."""
    try:
        from llguidance import LLTokenizer, TokenizerWrapper
    except ImportError as error:
        raise MissingExtraError("constraints need llguidance: `pip install 'edgellm[constrain]'`") from error
    return LLTokenizer(TokenizerWrapper(TokenTable(tokenizer)), eos_token=sorted(tokenizer.stop_ids))
