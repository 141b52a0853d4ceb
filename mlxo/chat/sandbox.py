"""A Jinja environment for templates that strangers wrote.

Jinja's immutable sandbox keeps a template away from Python's inside. What it does not bound is time and
memory: that is what `budget` is for. Here it is put into the template's syntax tree and around every call,
filter and operator. Owned by one thread: one render at a time.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.filters import do_round, do_sum
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from mlxo.chat.budget import MAX_BITS, MAX_CHARS, Budget

# Filters that no chat template needs and that could hang inside one call: quadratic, or without a bound.
# `format` is the % operator by another name.
_BARRED = ("format", "pprint", "striptags", "urlize", "wordwrap", "xmlattr")
_MAX_FORMAT = 10_000  # characters of a format string
_LONG_NUMBER = re.compile(r"\d{4}")  # a width in a format string
_MAX_INDENT = 32
_MAX_PRECISION = 100


class _Watched:
    """An iterable that looks at the clock at every item; has a length where the original has."""

    def __init__(self, inner: Iterable[Any], budget: Budget) -> None:
        self._inner = inner
        self._budget = budget

    def __iter__(self) -> Iterator[Any]:
        for item in self._inner:
            self._budget.tick()
            yield item

    def __len__(self) -> int:
        return len(self._inner)  # type: ignore[arg-type]  # a TypeError is what Jinja expects then


class _Guards(NodeTransformer):
    """Puts filters of ours around what a template loops over, keeps, builds and writes."""

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> nodes.Node:
        node = self.generic_visit(node)
        if isinstance(node, nodes.For):
            node.iter = _guarded(node.iter, "__watched")
        elif isinstance(node, nodes.Assign):
            node.node = _guarded(node.node, "__made")
        elif isinstance(node, nodes.AssignBlock):
            node.filter = _guarded(node.filter, "__made")
        elif isinstance(node, nodes.Output):
            texts = (nodes.Const(n.data) if isinstance(n, nodes.TemplateData) else n for n in node.nodes)
            node.nodes = [_guarded(text, "__text") for text in texts]
        elif isinstance(node, nodes.Concat):
            return _guarded(nodes.List(node.nodes), "__concat")
        elif isinstance(node, nodes.List | nodes.Tuple | nodes.Dict) and _holds_values(node):
            return _guarded(node, "__made")
        return node


def _holds_values(node: nodes.List | nodes.Tuple | nodes.Dict) -> bool:
    """Whether a literal is made of more than constants. A tuple may also be the targets of an assignment."""
    target = isinstance(node, nodes.Tuple) and node.ctx != "load"
    return not target and not all(isinstance(item, nodes.Const) for item in node.items)


def _guarded(inner: Any, name: str) -> nodes.Filter:
    return nodes.Filter(inner, name, [], [], None, None)


class _Namespace(Namespace):
    """Namespaces alone can change and hold each other, so what one would write has no bound."""

    def __repr__(self) -> str:
        return "<namespace>"


class _Generation(Extension):
    """`{% generation %} ... {% endgeneration %}` marks what training scores; for us it is its body."""

    tags = {"generation"}  # noqa: RUF012  # declared so by Jinja

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Environment(ImmutableSandboxedEnvironment):
    """The sandbox as transformers sets it up (trimmed blocks, loop controls, `tojson`), with the limits."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
        )
        self.budget = Budget()
        self.filters |= {"tojson": self._tojson, "sum": _sum, "round": _round}
        for name in _BARRED:
            del self.filters[name]
        for name, function in list(self.filters.items()):
            self.filters[name] = self._limited(function)
        self.filters |= {
            "__watched": lambda value: _Watched(value, self.budget),
            "__made": self.budget.made,
            "__text": self.budget.text,
            "__concat": self.budget.concat,
        }
        del self.globals["lipsum"]
        self.globals["namespace"] = _Namespace
        self.globals["raise_exception"] = _raise
        self.globals["strftime_now"] = lambda form: datetime.now().strftime(form)

    def _limited(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)  # with the marks by which Jinja knows what to pass
        def call(*args: Any, **kwargs: Any) -> Any:
            self.budget.before((*args, *kwargs.values()))
            return self.budget.made(function(*args, **kwargs))

        return call

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template = super()._parse(source, name, filename)
        _Guards().generic_visit(template)
        # Jinja would run filters over constants while it compiles, outside every limit.
        volatile = nodes.Keyword("volatile", nodes.Const(True))
        template.body.insert(0, nodes.EvalContextModifier([volatile]))
        return template

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapper = super().wrap_str_format(value)
        if wrapper is not None and (len(value.__self__) > _MAX_FORMAT or _LONG_NUMBER.search(value.__self__)):
            raise SecurityError("it asks for a value that is too large")
        return wrapper

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805  # Jinja's names
        if isinstance(__obj, Macro):  # does nothing of its own
            __self.budget.tick()
        else:
            # Jinja wraps str.format in a function.
            owner = getattr(getattr(__obj, "__wrapped__", __obj), "__self__", None)
            __self.budget.before((owner, *args, *kwargs.values()))
        return __self.budget.made(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        numbers = [value for value in (left, right) if isinstance(value, int)]
        if len(numbers) == 2:
            bits = [number.bit_length() for number in numbers]
            if max(bits) > MAX_BITS or (operator == "**" and max(bits) > 8):
                raise SecurityError("it asks for a number that is too large")
        elif operator == "%" and isinstance(left, str | bytes):
            raise SecurityError("formatting with % is not allowed")
        elif operator == "*":
            self.budget.before((left, right))
        return self.budget.made(super().call_binop(context, operator, left, right))

    def write(self, template: jinja2.Template, variables: Mapping[str, Any]) -> str:
        """The rendered text, stopped as soon as it is too long. Raises what the template raises."""
        self.budget.start()
        parts: list[str] = []
        size = 0
        for part in template.generate(variables):
            size += len(part)
            if size > MAX_CHARS:
                raise SecurityError("it writes a prompt that is too long")
            parts.append(part)
        return "".join(parts)

    def _tojson(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | str | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """JSON as a model has seen it in training: keys in their order, nothing escaped for HTML."""
        if (len(indent) if isinstance(indent, str) else indent or 0) > _MAX_INDENT:
            raise SecurityError("it asks for a value that is too large")
        encoder = json.JSONEncoder(
            ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )
        if indent is None:
            return encoder.encode(value)
        parts: list[str] = []
        size = 0
        for part in encoder.iterencode(value):  # a deep value is mostly indentation
            size += len(part)
            if size > MAX_CHARS:
                raise SecurityError("it makes values that are too large")
            parts.append(part)
        return "".join(parts)


@jinja2.pass_environment
def _sum(
    environment: Environment, items: Iterable[Any], attribute: str | int | None = None, start: Any = 0
) -> Any:
    if not isinstance(start, int | float):  # adding lists up is quadratic
        raise SecurityError("it adds up what are no numbers")
    return do_sum(environment, items, attribute, start)


def _round(value: float, precision: int = 0, method: Any = "common") -> float:
    if abs(precision) > _MAX_PRECISION:
        raise SecurityError("it asks for a number that is too large")
    return do_round(value, precision, method)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)
