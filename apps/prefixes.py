"""What the commands keep of prompts from one start to the next; `edgellm cache` shows it."""

import contextlib
import json
import time
from pathlib import Path

from edgellm import Model, Stream
from edgellm.store import cache_folder


def prefix_folder() -> Path:
    """Keys and values of prompts and answers."""
    return cache_folder() / "prefixes"


def last_report() -> Path:
    """What the prefix cache knew of the last prompt."""
    return cache_folder() / "last-prompt.json"


def remember_report(model: Model, stream: Stream) -> None:
    """Keep for `edgellm cache why` what was known of a prompt, where prefixes are kept."""
    report = stream.cache_report
    if report is not None and model.keeps_prefixes:
        told = {"model": model.name, "time": time.time(), "prompt_tokens": len(stream.prompt_token_ids)}
        told |= {"cached_tokens": report.num_cached_tokens, "reason": report.reason, "why": model.explain(report)}
        with contextlib.suppress(OSError):  # the answer is there, and that is what counts
            last_report().touch(mode=0o600)  # it tells a word of the text
            last_report().write_text(json.dumps(told))
