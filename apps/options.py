"""Options that several commands share. argparse only reads them; what makes no sense is refused where it is used."""

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from dataclasses import fields

from edgellm import SamplingParams
from edgellm.engine.constrain import Constraint
from edgellm.engine.params import CONTEXT_POLICIES, NUMBERS, SPECULATION, is_whole
from edgellm.errors import OptionError
from edgellm.kernels.kv_formats import kv_formats
from edgellm.kernels.quants import quants

NOT_TYPED = ("logprobs", "prompt_logprobs")  # options whose results the commands do not show
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
    """The options of SamplingParams. Those that are numbers are said there, meanings included."""
    group = parser.add_argument_group("generation")
    for number in NUMBERS:
        if number.name not in NOT_TYPED:
            whole = is_whole(number)
            default = number.default
            names = ["-n"] if number.name == "max_tokens" else []
            group.add_argument(
                *names, f"--{number.name.replace('_', '-')}", type=int if whole else float, default=default,
                metavar="N" if whole else "X",
                help=number.metadata["meaning"] + ("" if default is None else f" (default: {default:g})"),
            )  # fmt: skip
    group.add_argument("--ignore-eos", action="store_true", help="go on after the model's own end tokens")
    group.add_argument(
        "--dry-sequence-breaker",
        action="append",
        dest="dry_sequence_breakers",
        metavar="TEXT",
        help="DRY: repetitions end at this text; repeatable (default: line break, colon, double quote, asterisk)",
    )
    group.add_argument(
        "--sampler-order",
        type=comma_separated,
        default=SamplingParams.sampler_order,
        metavar="NAMES",
        help=f"samplers in order, those left out are off (default: {','.join(SamplingParams.sampler_order)})",
    )
    group.add_argument(
        "--logit-bias",
        type=_bias,
        action="append",
        default=[],
        metavar="ID=BIAS",
        help="added to the logit of a token; repeatable",
    )
    group.add_argument("--stop", action="append", metavar="TEXT", help="end the answer before this text; repeatable")
    group.add_argument(
        "--stop-token-id",
        action="append",
        dest="stop_token_ids",
        type=int,
        metavar="ID",
        help="end the answer with this token; repeatable",
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
        help="when the context is full: refuse (error), stop, or drop the oldest tokens (shift) (default: %(default)s)",
    )


def sampling_params(args: Namespace, constraint: Constraint | None = None) -> SamplingParams:
    """Errors: OptionError."""
    given = vars(args)
    options = {known.name: given[known.name] for known in fields(SamplingParams) if given.get(known.name) is not None}
    return SamplingParams(**options | {"logit_bias": dict(args.logit_bias), "constraint": constraint})


def at_least(lowest: int, option: str, value: int) -> int:
    """The value, or OptionError."""
    if value < lowest:
        raise OptionError(f"{option} {value} is too small: at least {lowest}")
    return value


def comma_separated(text: str) -> tuple[str, ...]:
    return tuple(part for part in text.split(",") if part)


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
