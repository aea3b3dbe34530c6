"""edgellm bench: speed and memory of a model on this machine."""

from argparse import ArgumentParser, Namespace
from dataclasses import asdict
from typing import Any

from edgellm.apps.loading import find, load, load_kernels
from edgellm.apps.measurement import Speed, bytes_per_token, measure_speed, median_speed, peak_rss_bytes
from edgellm.apps.options import MODEL_HELP, add_json, add_threads, at_least
from edgellm.apps.progress import bar
from edgellm.apps.tables import size, write_facts
from edgellm.apps.terminal import write_json
from edgellm.errors import OptionError
from edgellm.kernels.targets import ISAS
from edgellm.model import bandwidth
from edgellm.packed_header import open_header
from edgellm.threads import available_processors


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
    add_threads(parser)
    add_json(parser)


def main(args: Namespace) -> int:
    at_least(1, "--prompt", args.prompt)
    at_least(2, "--generate", args.generate)
    at_least(1, "--repeat", args.repeat)
    path = find(args.model)
    header, context = open_header(path), args.prompt + args.generate
    if context > header.config.context:
        raise OptionError(
            f"--prompt {args.prompt} and --generate {args.generate} are more than the {header.config.context} tokens "
            f"that {args.model} takes; ask for less"
        )
    with load(path, context=context, threads=args.threads, isa=args.isa) as model:
        with bar("measuring") as progress:
            speeds = measure_speed(model, args.prompt, args.generate, args.repeat, progress)
        peak = peak_rss_bytes()  # before the bandwidth's buffer adds to it
        name, isa, threads = model.name, model.isa, model.threads
    median = median_speed(speeds)
    traffic = bytes_per_token(header, args.prompt + args.generate // 2)
    readable = bandwidth.measure(load_kernels(args.isa), threads, available_processors().count)
    facts = {
        "model": name,
        "layout": "+".join(header.layout_names),
        "isa": isa,
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
    }
    if args.json:
        write_json(facts)
    else:
        _show(facts, speeds)
    return 0


def _show(facts: dict[str, Any], speeds: list[Speed]) -> None:
    def with_spread(name: str, unit: str) -> str:
        values = [getattr(speed, name) for speed in speeds]
        return f"{facts[name]:.1f} {unit} ({min(values):.1f} to {max(values):.1f} in {len(values)})"

    write_facts(
        {
            "model": f"{facts['model']}, {facts['layout']}",
            "kernels": f"{facts['isa']}, threads: {facts['threads']}",
            f"prefill of {facts['prompt']}": with_spread("prefill_tokens_per_second", "tokens/s"),
            f"decode of {facts['generate']}": with_spread("decode_tokens_per_second", "tokens/s"),
            "first token": with_spread("first_token_ms", "ms"),
            "peak memory": f"{size(facts['peak_rss_bytes'])}, with the mapped file of {size(facts['mapped_bytes'])}",
            "read per token": size(facts["bytes_per_token"]),
            "read bandwidth": f"{size(facts['read_bandwidth_bytes_per_second'])}/s",
            "decoding reaches": f"{facts['bandwidth_fraction']:.0%} of it",
        }
    )
