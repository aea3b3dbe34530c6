"""edgellm models: what is in the store."""

import sys
from argparse import SUPPRESS, ArgumentParser, Namespace
from typing import Any, Literal

from edgellm.apps.conversion_report import write_report
from edgellm.apps.tables import scaled, size, write_facts, write_table
from edgellm.apps.terminal import one_line, write_json
from edgellm.packed.header import PackedHeader, open_header
from edgellm.store import Store, StoredModel

COLUMNS: dict[str, Literal["left", "right"]] = {
    "name": "left",
    "architecture": "left",
    "parameters": "right",
    "layout": "left",
    "bits/weight": "right",
    "size": "right",
    "license": "left",
}


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object, and nothing else")
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    for name, summary in (("list", "all models; the default"), ("show", "all about a model"), ("rm", "remove a model")):
        action = actions.add_parser(name, help=summary, description=f"{summary.capitalize()}.", allow_abbrev=False)
        if name != "list":
            action.add_argument("name", metavar="NAME", help="as `edgellm models` lists it")
        if name != "rm":  # SUPPRESS: keep what was said before the action
            action.add_argument("--json", action="store_true", default=SUPPRESS, help="print one JSON object")


def main(args: Namespace) -> int:
    store = Store()
    match args.action:
        case "show":
            _show(store, args.name, as_json=args.json)
        case "rm":
            store.remove(args.name)
            sys.stdout.write(f"removed {args.name}\n")
        case _:
            _list(store, as_json=args.json)
    return 0


def _list(store: Store, *, as_json: bool) -> None:
    models = store.models()
    if as_json:
        write_json({"models": [_entry(model) for model in models]})
    elif models:
        write_table(COLUMNS, [_row(model) for model in models])
    else:
        sys.stdout.write("no models yet; `edgellm pull smollm2-135m-instruct` gets one\n")


def _entry(model: StoredModel) -> dict[str, object]:
    if isinstance(model.header, PackedHeader):
        return {"name": model.name, **_facts(model.header)}
    return {"name": model.name, "path": str(model.path), "error": str(model.header)}


def _row(model: StoredModel) -> list[str]:
    if not isinstance(model.header, PackedHeader):
        return [model.name, f"cannot be read: {one_line(str(model.header))}"] + [""] * (len(COLUMNS) - 2)
    header = model.header
    return [
        model.name,
        header.network.family,
        scaled(header.num_parameters, ("", "k", "M", "G")),
        "+".join(header.quant_names),
        f"{header.bits_per_weight:.2f}",
        size(header.nbytes),
        header.provenance.get("license", "unknown"),
    ]


def _facts(header: PackedHeader) -> dict[str, Any]:
    return {
        "path": str(header.path),
        "architecture": header.network.family,
        "parameters": header.num_parameters,
        "layout": "+".join(header.quant_names),
        "bits_per_weight": header.bits_per_weight,
        "bytes": header.nbytes,
        "license": header.provenance.get("license", "unknown"),
    }


def _show(store: Store, name: str, *, as_json: bool) -> None:
    header = open_header(store.path(name))
    facts = {"name": name, **_facts(header)}
    if as_json:
        write_json(
            facts
            | {
                "config": dict(header.network.config),
                "provenance": header.provenance,
                "report": header.report,
                "chat_template": header.chat_template,
            }
        )
        return
    facts |= {"parameters": f"{facts['parameters']:,}", "bytes": f"{facts['bytes']:,}"}
    facts |= {"bits_per_weight": f"{facts['bits_per_weight']:.3f}"}
    config = {key: value for key, value in header.network.config.items() if key != "architecture"}
    provenance = {key: value for key, value in header.provenance.items() if key not in ("name", "license")}
    write_facts(facts | config | provenance | {"chat_template": "yes" if header.chat_template else "no"})
    write_report(header.report)
