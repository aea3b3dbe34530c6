"""What the prefix cache reports, in words."""

from edgellm.memory.prefix import CacheReport
from edgellm.tokenizer import Tokenizer

REASONS = {
    "hit": "the rest was computed for its logits",
    "never seen": "what follows was never seen",
    "model changed": "what follows was cached by another model file or KV format",
    "evicted": "what follows had to make room",
    "no state": "what follows is known, but no state to go on from was kept",
    "not read": "all of it was computed for its log-probabilities",
}


def explain(report: CacheReport, tokenizer: Tokenizer) -> str:
    """How much of a prompt was known, and why not more."""
    cached = f"{report.num_cached_tokens} tokens cached ({report.from_disk} of them from disk)"
    if report.reason != "differs":
        return f"{cached}; {REASONS[report.reason]}"
    assert report.differs_at is not None and report.expected is not None
    known = tokenizer.decode([report.expected], special=True)
    return f"{cached}; token {report.differs_at} differs from the cached text, which goes on with {known!r}"
