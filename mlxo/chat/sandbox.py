"""A Jinja environment for templates that strangers wrote.

Jinja's immutable sandbox keeps a template away from Python's inside. What it does not bound is time and
memory. Here every loop turn, call and filter looks at a deadline; what one operation may make is estimated
from its operands before it runs; and all that is made is added up. Owned by one thread: one render at a time.
"""

from __future__ import annotations

import functools
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_SECONDS = 10.0
MAX_CHARS = 32_000_000  # of the prompt, and of any value on the way
_MAX_MADE = 1 << 30  # characters of all values that one render makes
_MAX_PRODUCT = 1 << 28  # of the two largest operands of one call
_MAX_BITS = 4096  # of a number
_LONG_NUMBER = re.compile(r"\d{6}")  # a width in a format string


class Budget:
    """What is left of a render's time and memory. `start` it before each render."""

    def __init__(self) -> None:
        self._deadline = 0.0
        self._made = 0

    def start(self) -> None:
        self._deadline = time.monotonic() + MAX_SECONDS
        self._made = 0

    def tick(self) -> None:
        if time.monotonic() > self._deadline:
            raise SecurityError(f"it ran for more than {MAX_SECONDS:g} seconds")

    def before(self, operands: Iterable[Any]) -> None:
        """Refuse an operation that could make too much: `'x'.ljust(10**12)`, `s.replace('x', s)`."""
        self.tick()
        sizes = sorted(map(_size, operands), reverse=True)[:2]
        if sizes and (sizes[0] > MAX_CHARS or (len(sizes) > 1 and sizes[0] * sizes[1] > _MAX_PRODUCT)):
            raise SecurityError("it asks for a value that is too large")

    def made(self, value: Any) -> Any:
        """Count a value; returns it."""
        if isinstance(value, str | list | tuple | dict):
            self._made += len(value)
            if len(value) > MAX_CHARS or self._made > _MAX_MADE:
                raise SecurityError("it makes values that are too large")
        return value


def _size(value: Any) -> int:
    """Characters or items; for a number itself, as it may be a width or a count."""
    if isinstance(value, int):
        return abs(value)
    if isinstance(value, list | tuple):
        return len(value) + sum(len(item) for item in value if isinstance(item, str))
    return len(value) if isinstance(value, str) else 0


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


def _add_guards(template: nodes.Template) -> None:
    """Put a filter of ours around what every `for` runs over and every `set` keeps."""

    def guarded(inner: Any, name: str) -> nodes.Filter:
        return nodes.Filter(inner, name, [], [], None, None)

    for loop in template.find_all(nodes.For):
        loop.iter = guarded(loop.iter, "__watched")
    for assign in template.find_all(nodes.Assign):
        assign.node = guarded(assign.node, "__made")
    for block in template.find_all(nodes.AssignBlock):
        block.filter = guarded(block.filter, "__made")


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
        self.filters["tojson"] = _tojson
        del self.filters["format"]  # the % operator by another name
        for name, function in list(self.filters.items()):
            self.filters[name] = self._limited(function)
        self.filters["__watched"] = lambda value: _Watched(value, self.budget)
        self.filters["__made"] = self.budget.made
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
        _add_guards(template)
        return template

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805  # Jinja's names
        owner = getattr(__obj, "__self__", None)
        __self.budget.before((owner, *args, *kwargs.values()))
        if isinstance(owner, str) and __obj.__name__.startswith("format") and _LONG_NUMBER.search(owner):
            raise SecurityError("it asks for a value that is too large")
        return __self.budget.made(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        numbers = [value for value in (left, right) if isinstance(value, int)]
        if len(numbers) == 2:
            bits = [number.bit_length() for number in numbers]
            if max(bits) > _MAX_BITS or (operator == "**" and max(bits) > 8):
                raise SecurityError("it asks for a number that is too large")
        elif operator == "%" and isinstance(left, str):
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
            self.budget.tick()
            size += len(part)
            if size > MAX_CHARS:
                raise SecurityError("it writes a prompt that is too long")
            parts.append(part)
        return "".join(parts)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as a model has seen it in training: keys in their order, nothing escaped for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)
