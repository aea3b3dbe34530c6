"""Options that several commands share. argparse only reads them; what makes no sense is refused where it is used."""

from argparse import ArgumentParser, ArgumentTypeError, Namespace, _ActionsContainer

from edgellm import SamplingParams
from edgellm.engine.constrain import Constraint
from edgellm.engine.params import CONTEXT_POLICIES, SPECULATION
from edgellm.errors import OptionError
from edgellm.kernels.kv_formats import kv_formats
from edgellm.kernels.quants import quants

SIZE_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
MODEL_HELP = "name of a model (see `edgellm models`), a packed file, or a GGUF file"


def add_engine_options(parser: ArgumentParser) -> None:
    parser.add_argument("--context", type=int, metavar="N", help="most tokens of prompt and answer together")
    add_machine_options(parser)


def add_machine_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--threads", type=int, metavar="N", help="threads that compute (default: the free physical cores)"
    )
    parser.add_argument(
        "--kv-cache-dtype", choices=kv_formats(), default="bf16", help="keys and values (default: %(default)s)"
    )
    parser.add_argument(
        "--kv-memory", type=_size, metavar="SIZE", help="memory for keys and values of all texts, e.g. 512M or 2G"
    )


def add_reuse_options(parser: ArgumentParser) -> None:
    parser.add_argument("--draft", metavar="MODEL", help="a smaller model of the same family that drafts for this one")
    parser.add_argument(
        "--no-prefix-cache", action="store_true", help="keep nothing of this prompt on disk, and look for nothing there"
    )


def add_json(parser: ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object, and nothing else")


def add_timings(parser: ArgumentParser) -> None:
    parser.add_argument("--timings", action="store_true", help="say how long it took, even where nobody watches")


def add_layout(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--layout", metavar="LAYOUT", help=f"{', '.join(quants())} (default: codes are kept bit for bit where possible)"
    )


def add_sampling_options(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("generation")
    group.add_argument("-n", "--max-tokens", type=int, metavar="N", help="most tokens of an answer")
    _add_number(group, "--temperature", "0 always takes the most likely token", 0.0)
    group.add_argument("--top-k", type=int, default=0, metavar="K", help="choose among the K likeliest (default: all)")
    _add_number(group, "--typical-p", "choose among the most typical that reach this probability together", 1.0)
    _add_number(group, "--top-p", "choose among the likeliest that reach this probability together", 1.0)
    _add_number(group, "--min-p", "choose among those at least so likely as this part of the likeliest", 0.0)
    _add_number(group, "--xtc-threshold", "XTC excludes tokens so likely, but for the least likely of them", 0.1)
    _add_number(group, "--xtc-probability", "how often XTC does", 0.0)
    _add_number(group, "--repetition-penalty", "above 1 avoids tokens of prompt and answer", 1.0)
    _add_number(group, "--presence-penalty", "above 0 avoids tokens of the answer", 0.0)
    _add_number(group, "--frequency-penalty", "above 0 avoids them by how often they came", 0.0)
    _add_last_n(group, "--penalty-last-n", "penalties look at the last N tokens")
    _add_number(group, "--dry-multiplier", "DRY: above 0 avoids tokens that continue a repetition", 0.0)
    _add_number(group, "--dry-base", "DRY: by so much more for every token that it is longer", 1.75)
    group.add_argument(
        "--dry-allowed-length", type=int, default=2, metavar="N", help="DRY: shorter ones may go on (default: 2)"
    )
    _add_last_n(group, "--dry-penalty-last-n", "DRY looks at the last N tokens")
    group.add_argument(
        "--dry-sequence-breaker",
        action="append",
        metavar="TEXT",
        help="DRY: repetitions end at this text; repeatable (default: line break, colon, double quote, asterisk)",
    )
    group.add_argument("--mirostat", type=int, default=0, metavar="N", help="2: Mirostat 2.0 (default: 0, off)")
    _add_number(group, "--mirostat-tau", "the surprise in bits that Mirostat aims at", 5.0)
    _add_number(group, "--mirostat-eta", "how quickly Mirostat adapts", 0.1)
    group.add_argument(
        "--sampler-order",
        type=comma_separated,
        default=SamplingParams.sampler_order,
        metavar="NAMES",
        help=f"samplers in order, those left out are off (default: {','.join(SamplingParams.sampler_order)})",
    )
    group.add_argument("--seed", type=int, metavar="S", help="makes chance repeatable")
    group.add_argument(
        "--logit-bias",
        type=_bias,
        action="append",
        default=[],
        metavar="ID=BIAS",
        help="make a token likelier; repeatable",
    )
    group.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end the answer before this text; repeatable"
    )
    group.add_argument(
        "--speculation",
        choices=SPECULATION,
        default=SamplingParams.speculation,
        help="draft tokens ahead, which never changes the text (default: %(default)s, where it is faster)",
    )
    group.add_argument(
        "--context-policy",
        choices=CONTEXT_POLICIES,
        default=SamplingParams.context_policy,
        help="what does not fit the context is refused, cut short, or makes older text leave (default: %(default)s)",
    )
    group.add_argument(
        "--context-keep", type=int, default=0, metavar="N", help="shift: the first N tokens stay (default: 0)"
    )


def sampling_params(args: Namespace, constraint: Constraint | None = None) -> SamplingParams:
    """Errors: OptionError."""
    return SamplingParams(
        max_tokens=args.max_tokens,
        temperature=args.temperature,
        top_k=args.top_k,
        typical_p=args.typical_p,
        top_p=args.top_p,
        min_p=args.min_p,
        xtc_threshold=args.xtc_threshold,
        xtc_probability=args.xtc_probability,
        repetition_penalty=args.repetition_penalty,
        presence_penalty=args.presence_penalty,
        frequency_penalty=args.frequency_penalty,
        penalty_last_n=args.penalty_last_n,
        dry_multiplier=args.dry_multiplier,
        dry_base=args.dry_base,
        dry_allowed_length=args.dry_allowed_length,
        dry_penalty_last_n=args.dry_penalty_last_n,
        dry_sequence_breakers=tuple(args.dry_sequence_breaker or SamplingParams.dry_sequence_breakers),
        mirostat=args.mirostat,
        mirostat_tau=args.mirostat_tau,
        mirostat_eta=args.mirostat_eta,
        sampler_order=args.sampler_order,
        seed=args.seed,
        logit_bias=dict(args.logit_bias),
        stop=tuple(args.stop),
        constraint=constraint,
        speculation=args.speculation,
        context_policy=args.context_policy,
        context_keep=args.context_keep,
    )


def at_least(lowest: int, option: str, value: int) -> int:
    """The value, or OptionError."""
    if value < lowest:
        raise OptionError(f"{option} {value} is too small: at least {lowest}")
    return value


def comma_separated(text: str) -> tuple[str, ...]:
    return tuple(part for part in text.split(",") if part)


def _add_number(group: _ActionsContainer, option: str, meaning: str, default: float) -> None:
    group.add_argument(option, type=float, default=default, metavar="X", help=f"{meaning} (default: {default:g})")


def _add_last_n(group: _ActionsContainer, option: str, meaning: str) -> None:
    group.add_argument(option, type=int, default=-1, metavar="N", help=f"{meaning} (default: -1, the whole text)")


def _size(text: str) -> int:
    """Bytes; K, M and G are powers of 1024."""
    number, unit = (text[:-1], text[-1:].upper()) if text[-1:].isalpha() else (text, "")
    try:
        return int(float(number) * SIZE_UNITS[unit])
    except (KeyError, ValueError, OverflowError):
        raise ArgumentTypeError(f"{text!r} is not a size in bytes, e.g. 512M or 2G") from None


def _bias(text: str) -> tuple[int, float]:
    token, _, bias = text.partition("=")
    try:
        return int(token), float(bias)
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is not of the form ID=BIAS, e.g. 42=-1.5") from None
