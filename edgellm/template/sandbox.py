"""Jinja2 for chat templates, which are programs from strangers: what they may touch, and how much they may do.

Jinja2's immutable sandbox keeps a template from reaching Python. It does not keep it from running for ever or from
filling the memory, so here

- every operation that loops, calls or builds a value first reads a clock of CPU time (`Meter.step`) and then counts the
  size of what it built (`Meter.made`); the syntax tree is rewritten where Jinja2 offers no hook (`_Metering`);
- operations whose result can be far larger than their operands count before they build, and filters and methods that
  chat templates have no use for are left out (functions.py).

Values in a template are those of JSON and Jinja2's own; `ChatTemplate` sees to that.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from jinja2 import nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Cycler, Joiner
from jinja2.visitor import NodeTransformer

from edgellm.template.budget import ENTRY, MAX_BITS, BudgetError, Meter, meter
from edgellm.template.functions import (
    FILTERS,
    METHODS,
    OpaqueNamespace,
    call_method,
    check_format,
    raise_exception,
    strftime_now,
)


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """The environment that chat templates are written for, as Hugging Face's transformers defines it, on a budget."""

    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "%", "**"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # nothing runs while compiling
            finalize=_finalize,
            extensions=[loopcontrols, _GenerationBlock],
        )
        self.filters = dict(FILTERS)
        self.globals = {
            "range": self.globals["range"],  # Jinja2's own, of at most 100000 entries
            "dict": lambda **entries: entries,
            "namespace": OpaqueNamespace,
            "cycler": Cycler,
            "joiner": Joiner,
            "raise_exception": raise_exception,
            "strftime_now": strftime_now,
        }

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        return super()._generate(_Metering().visit(source), *args, **kwargs)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str | list | tuple | dict | int | float | bytes | range) and callable(value):
            return attr in METHODS.get(type(obj), ())
        return super().is_safe_attribute(obj, attr, value)

    def unsafe_undefined(self, obj: Any, attribute: str) -> Undefined:
        raise SecurityError(f"it reaches for the attribute {attribute!r} of a {type(obj).__name__}")

    def wrap_str_format(self, value: Any) -> Callable[..., Any] | None:
        """Jinja2's hook for methods it must replace: `format` there, here all that can build much from little."""
        receiver = getattr(value, "__self__", None)
        name = getattr(value, "__name__", "")
        if not isinstance(receiver, str) or not callable(value):
            return None
        sandboxed = super().wrap_str_format(value)
        return partial(call_method, receiver, name, sandboxed or value) if name in METHODS[str] else None

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        budget = meter()
        budget.step()
        return budget.made(super().call(context, obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        budget = meter()
        budget.step()
        _check_binop(budget, operator, left, right)
        return budget.made(super().call_binop(context, operator, left, right))

    @staticmethod
    def step() -> bool:
        """What the rewritten tree calls in each round of a loop: `call` reads the clock."""
        return True

    @staticmethod
    def made(value: Any) -> Any:
        """What the rewritten tree passes new values through: `call` counts them."""
        return value

    @staticmethod
    def joined(*parts: Any) -> str:
        """The operator ~"""
        texts = list(map(str, parts))
        meter().spend(sum(map(len, texts)))
        return "".join(texts)


class _Metering(NodeTransformer):
    """Puts calls to `step`, `made` and `joined` of the environment into a template's syntax tree."""

    def visit_For(self, node: nodes.For) -> nodes.For:  # noqa: N802
        self.generic_visit(node)
        step = _call(node, "step", [])
        node.body.insert(0, nodes.ExprStmt(step, lineno=node.lineno))
        if node.test is not None:
            node.test = nodes.And(step, node.test, lineno=node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _call(node, "joined", node.nodes)

    def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.Node:  # noqa: N802
        return nodes.Const(node.data, lineno=node.lineno)  # so that it goes through `finalize`

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        return self._count(node) if node.ctx == "load" else node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        return self._count(node) if isinstance(node.arg, nodes.Slice) else self.generic_visit(node)

    def _count(self, node: nodes.Node) -> nodes.Node:
        self.generic_visit(node)
        return _call(node, "made", [node])

    visit_List = visit_Dict = visit_Compare = visit_Test = _count  # noqa: N815


def _call(node: nodes.Node, name: str, arguments: list[Any]) -> nodes.Call:
    function = nodes.EnvironmentAttribute(name, lineno=node.lineno)
    return nodes.Call(function, arguments, [], None, None, lineno=node.lineno)


class _GenerationBlock(Extension):
    """{% generation %}: marks the assistant's words for training; here only its content counts."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@pass_context
def _finalize(context: Context, value: Any) -> str:
    budget = meter()
    budget.step()
    text = value if isinstance(value, str) else str(value)
    budget.spend(len(text))
    return text


def _check_binop(budget: Meter, operator: str, left: Any, right: Any) -> None:
    if operator == "*":
        for sequence, count in ((left, right), (right, left)):
            if isinstance(sequence, str | list | tuple) and isinstance(count, int) and count > 0:
                budget.spend(len(sequence) * count * (1 if isinstance(sequence, str) else ENTRY))
    if operator == "%" and isinstance(left, str):
        check_format(left, right)
    integers = isinstance(left, int) and isinstance(right, int)
    if operator == "**" and integers and left.bit_length() * right > MAX_BITS:
        raise BudgetError("it computes a huge power")
