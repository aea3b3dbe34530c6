"""edgellm bench: speed and memory of a model on this machine, alone or in turn with llama.cpp."""

from argparse import ArgumentParser, Namespace
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgellm import Model
from edgellm.apps.engine_bench import table
from edgellm.apps.llama_cpp import PeerResult, measure_peer
from edgellm.apps.loading import find, load, load_kernels
from edgellm.apps.options import MODEL_HELP, add_json, add_machine_options, at_least
from edgellm.apps.progress import bar
from edgellm.apps.speed import Course, Speed, bytes_per_token, median_speed, peak_rss_bytes
from edgellm.apps.tables import size, write_facts, write_table
from edgellm.apps.terminal import write_json
from edgellm.errors import OptionError
from edgellm.inspect import bandwidth
from edgellm.kernels.kv_formats import kv_formats
from edgellm.kernels.ops import KV_BLOCK
from edgellm.kernels.targets import ISAS
from edgellm.memory.layout import state_layout
from edgellm.packed.header import PackedHeader, open_header
from edgellm.processors import available_processors


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument(
        "--prompt", type=int, default=512, metavar="N", help="tokens of the prompt (default: %(default)s)"
    )
    parser.add_argument(
        "--generate", type=int, default=128, metavar="N", help="tokens of the answer (default: %(default)s)"
    )
    parser.add_argument("--repeat", type=int, default=5, metavar="R", help="times to measure (default: %(default)s)")
    parser.add_argument("--isa", choices=ISAS, help="use a lesser instruction set of this processor")
    parser.add_argument(
        "--against", type=Path, metavar="FILE.gguf", help="measure llama.cpp on this file as well, in turn with edgellm"
    )
    parser.add_argument(
        "--engine",
        action="store_true",
        help="measure what the engine does for requests instead: prefix cache, speculation, batching, constraints",
    )
    parser.add_argument("--profile", action="store_true", help="show where the time of a step goes, too")
    add_machine_options(parser)
    add_json(parser)


def main(args: Namespace) -> int:
    at_least(1, "--prompt", args.prompt)
    at_least(2, "--generate", args.generate)
    at_least(1, "--repeat", args.repeat)
    path = find(args.model)
    if args.engine:
        return _engine(path, args)
    header = open_header(path)
    context = args.prompt + args.generate
    if context > header.network.context:
        raise OptionError(
            f"--prompt {args.prompt} and --generate {args.generate} are more than the {header.network.context} tokens "
            f"that {args.model} takes; ask for less"
        )
    facts, peers = _measure(path, header, args)
    if args.against is not None:
        facts |= _comparison(facts, peers)
    if args.json:
        write_json(facts)
    else:
        _show(facts)
    return 0


def _engine(path: Path, args: Namespace) -> int:
    for option, given in (("--against", args.against is not None), ("--profile", args.profile)):
        if given:
            raise OptionError(f"{option} has no place beside --engine; leave one of them out")
    facts = table.measure(path, args)
    if args.json:
        write_json(facts)
    else:
        table.show(facts)
    return 0


def _measure(path: Path, header: PackedHeader, args: Namespace) -> tuple[dict[str, Any], list[PeerResult]]:
    """Our figures, and llama.cpp's repeats where it is asked for: one of us, one of them, and so on."""
    speeds: list[Speed] = []
    peers: list[PeerResult] = []
    context = args.prompt + args.generate
    if args.kv_memory is None:  # that of the text measured: what prefixes would keep is not its cost
        blocks = -(-context // KV_BLOCK)
        args.kv_memory = blocks * KV_BLOCK * state_layout(header.network, kv_formats()[args.kv_cache_dtype]).token_bytes
    with load(path, args, context=context, isa=args.isa) as model:
        course = Course(model, args.prompt, args.generate)
        with bar("measuring") as progress:
            for done in range(args.repeat):
                progress(done, args.repeat)
                speeds.append(course.run())
                if args.against is not None:
                    peers.append(measure_peer(args.against, args.prompt, args.generate, model.threads))
        profiles = _profiles(model, args) if args.profile else {}
        peak = peak_rss_bytes()  # before the bandwidth's buffer adds to it
        name = model.name
        isa = model.isa
        threads = model.threads
    median = median_speed(speeds)
    traffic = bytes_per_token(header, args.prompt + args.generate // 2, args.kv_cache_dtype)
    readable = bandwidth.measure(load_kernels(args.isa), threads, available_processors().count)
    facts = {
        "model": name,
        "layout": "+".join(header.quant_names),
        "isa": isa,
        "kv_cache_dtype": args.kv_cache_dtype,
        "threads": threads,
        "prompt": args.prompt,
        "generate": args.generate,
        **asdict(median),
        "peak_rss_bytes": peak,
        "mapped_bytes": header.nbytes,
        "bytes_per_token": traffic,
        "read_bandwidth_bytes_per_second": readable,
        "bandwidth_fraction": median.decode_tokens_per_second * traffic / readable,
        "repeats": [asdict(speed) for speed in speeds],
        **profiles,
    }
    return facts, peers


def _profiles(model: Model, args: Namespace) -> dict[str, Any]:
    """Of a token after the prompt, and of the prompt's first step."""
    rows = min(args.prompt, model.max_rows)
    profiles = {"decode": model.profile(1, args.prompt), "prefill": model.profile(rows, 0)}
    return {"profile": {name: [asdict(operation) for operation in found] for name, found in profiles.items()}}


def _comparison(facts: dict[str, Any], peers: list[PeerResult]) -> dict[str, Any]:
    """The peer's figures, and ours as multiples of them: medians of the same run."""
    median = median_speed([peer.speed for peer in peers])
    return {
        "peer": {
            "model": peers[0].model,
            "threads": facts["threads"],
            **asdict(median),
            "peak_rss_bytes": max(peer.peak_rss_bytes for peer in peers),
            "repeats": [asdict(peer.speed) for peer in peers],
        },
        "ratio": {
            "prefill": facts["prefill_tokens_per_second"] / median.prefill_tokens_per_second,
            "decode": facts["decode_tokens_per_second"] / median.decode_tokens_per_second,
        },
    }


def _with_spread(facts: dict[str, Any], name: str, unit: str) -> str:
    values = [repeat[name] for repeat in facts["repeats"]]
    return f"{facts[name]:.1f} {unit} ({min(values):.1f} to {max(values):.1f} in {len(values)})"


def _show(facts: dict[str, Any]) -> None:
    prefill = f"prefill of {facts['prompt']}"
    decode = f"decode of {facts['generate']}"
    lines = {
        "model": f"{facts['model']}, {facts['layout']}",
        "kernels": f"{facts['isa']}, threads: {facts['threads']}",
        prefill: _with_spread(facts, "prefill_tokens_per_second", "tokens/s"),
        decode: _with_spread(facts, "decode_tokens_per_second", "tokens/s"),
        "first token": _with_spread(facts, "first_token_ms", "ms"),
        "peak memory": f"{size(facts['peak_rss_bytes'])}, with the mapped file of {size(facts['mapped_bytes'])}",
        "read per token": size(facts["bytes_per_token"]),
        "read bandwidth": f"{size(facts['read_bandwidth_bytes_per_second'])}/s",
        "decoding reaches": f"{facts['bandwidth_fraction']:.0%} of it",
    }
    if "peer" in facts:
        peer = facts["peer"]
        ratio = facts["ratio"]
        lines |= {
            "llama.cpp": f"{peer['model']}, peak memory {size(peer['peak_rss_bytes'])}",
            f"its {prefill}": _with_spread(peer, "prefill_tokens_per_second", "tokens/s"),
            f"its {decode}": _with_spread(peer, "decode_tokens_per_second", "tokens/s"),
            "we are faster by": f"{ratio['prefill']:.2f} x in prefill, {ratio['decode']:.2f} x in decode",
        }
    write_facts(lines)
    for name, operations in facts.get("profile", {}).items():
        _show_profile(name, operations)


def _show_profile(name: str, operations: list[dict[str, Any]]) -> None:
    total = sum(operation["seconds"] for operation in operations)
    titles = ("operations", "time", "share", "reads", "products")
    write_table(
        {f"{name}: {total * 1e3:.2f} ms": "left", **dict.fromkeys(titles, "right")},
        [
            [
                operation["name"],
                str(operation["count"]),
                f"{operation['seconds'] * 1e6:.0f} us",
                f"{operation['seconds'] / total:.1%}",
                f"{operation['bytes'] / operation['seconds'] / 1e9:.1f} GB/s" if operation["bytes"] else "",
                f"{operation['products'] / operation['seconds'] / 1e9:.0f} G/s" if operation["products"] else "",
            ]
            for operation in operations
        ],
    )
