"""edgellm cache: the prefixes that are kept on disk, and why the last prompt was not found among them."""

import json
import sys
import time
from argparse import SUPPRESS, ArgumentParser, Namespace
from typing import Any

from edgellm.apps.prefixes import last_report, prefix_folder
from edgellm.apps.tables import size, write_table
from edgellm.apps.terminal import write_json
from edgellm.engine.fingerprint import fingerprint
from edgellm.errors import EdgeLLMError
from edgellm.kernels.kv_formats import kv_formats
from edgellm.memory.disk.folder import ModelUsage, clear_folder, describe_folder
from edgellm.packed.read import open_packed
from edgellm.store import Store

ACTIONS = {
    "show": "what is kept, by model; the default",
    "clear": "remove all of it",
    "why": "what the last prompt found, and why not more",
}


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object, and nothing else")
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    for name, summary in ACTIONS.items():
        action = actions.add_parser(name, help=summary, description=f"{summary.capitalize()}.", allow_abbrev=False)
        action.add_argument("--json", action="store_true", default=SUPPRESS, help="print one JSON object")


def main(args: Namespace) -> int:
    match args.action:
        case "clear":
            _clear(as_json=args.json)
        case "why":
            _why(as_json=args.json)
        case _:
            _show(as_json=args.json)
    return 0


def _show(*, as_json: bool) -> None:
    names = _model_names()
    entries = [_entry(usage, names) for usage in describe_folder(prefix_folder())] if prefix_folder().is_dir() else []
    if as_json:
        write_json({"folder": str(prefix_folder()), "models": entries})
    elif entries:
        rows = [
            [e["model"], str(e["blocks"]), str(e["tokens"]), size(e["bytes"]), _ago(e["last_use"])] for e in entries
        ]
        columns = dict.fromkeys(("blocks", "tokens", "size", "last used"), "right")
        write_table({"model": "left", **columns}, rows)  # type: ignore[dict-item]
    else:
        sys.stdout.write("no prefixes are kept yet; `edgellm run` and `edgellm chat` keep those of their prompts\n")


def _clear(*, as_json: bool) -> None:
    freed = clear_folder(prefix_folder()) if prefix_folder().is_dir() else 0
    last_report().unlink(missing_ok=True)
    if as_json:
        write_json({"freed_bytes": freed})
    else:
        sys.stdout.write(f"removed {size(freed)}\n")


def _why(*, as_json: bool) -> None:
    try:
        told: dict[str, Any] = json.loads(last_report().read_text())
    except FileNotFoundError:
        raise EdgeLLMError(
            "no prompt was answered with the cache yet; ask with `edgellm run` or `edgellm chat`"
        ) from None
    except ValueError as error:
        raise EdgeLLMError(f"{last_report()} cannot be read ({error}); the next prompt writes it anew") from error
    if as_json:
        write_json(told)
    else:
        sys.stdout.write(f"{told['model']}, prompt of {told['prompt_tokens']} tokens: {told['why']}\n")


def _model_names() -> dict[bytes, str]:
    """Identity -> name of the models in the store."""
    names: dict[bytes, str] = {}
    store = Store()
    for name in store.names():
        try:
            packed = open_packed(store.path(name))
        except EdgeLLMError:
            continue  # `edgellm models` tells what is wrong with it
        names |= {fingerprint(packed, kv_format): f"{name} ({dtype})" for dtype, kv_format in kv_formats().items()}
        packed.close()
    return names


def _entry(usage: ModelUsage, names: dict[bytes, str]) -> dict[str, Any]:
    return {
        "model": names.get(usage.model, f"not in the store ({usage.model.hex()[:8]})"),
        "blocks": usage.blocks,
        "tokens": usage.tokens,
        "bytes": usage.nbytes,
        "last_use": usage.last_use,
    }


def _ago(when: float) -> str:
    seconds = max(0.0, time.time() - when)
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return "just now"
