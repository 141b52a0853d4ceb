"""A Jinja environment for templates that strangers wrote.

Jinja's immutable sandbox keeps a template away from Python's inside. What it does not bound is time and
memory; this adds: a deadline that every loop turn, call and filter looks at, a size no value may pass, and a
cap on what comes out. Owned by one thread: one render at a time.
"""

from __future__ import annotations

import functools
import json
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

MAX_CHARS = 32_000_000  # of a prompt and of any value on the way
MAX_SECONDS = 10.0
MAX_EXPONENT = 64


class Budget:
    """What is left of a render's time. `start` it before each render."""

    def __init__(self) -> None:
        self._deadline = 0.0

    def start(self) -> None:
        self._deadline = time.monotonic() + MAX_SECONDS

    def tick(self) -> None:
        if time.monotonic() > self._deadline:
            raise SecurityError(f"it ran for more than {MAX_SECONDS:g} seconds")


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


def _bounded(value: Any) -> Any:
    if isinstance(value, str | bytes | list | tuple | dict) and len(value) > MAX_CHARS:
        raise SecurityError("it makes a value that is too large")
    return value


def _small(values: Iterable[Any]) -> None:
    """Refuse numbers that ask for a huge result (`'x'.ljust(10**12)`) before it is made."""
    if any(isinstance(v, int) and abs(v) > MAX_CHARS for v in values):
        raise SecurityError("it asks for a value that is too large")


def _loops_are_watched(template: nodes.Template) -> None:
    """Put the guard around what every `for` runs over and every `set` keeps."""

    def guarded(inner: Any, name: str) -> nodes.Filter:
        return nodes.Filter(inner, name, [], [], None, None)

    for loop in template.find_all(nodes.For):
        loop.iter = guarded(loop.iter, "__watched")
    for assign in template.find_all(nodes.Assign):
        assign.node = guarded(assign.node, "__bounded")
    for block in template.find_all(nodes.AssignBlock):
        block.filter = guarded(block.filter, "__bounded")


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
        for name, function in list(self.filters.items()):
            self.filters[name] = self._limited(function)
        self.filters["__watched"] = lambda value: _Watched(value, self.budget)
        self.filters["__bounded"] = _bounded
        self.globals["raise_exception"] = _raise
        self.globals["strftime_now"] = lambda form: datetime.now().strftime(form)

    def _limited(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            self.budget.tick()
            _small((*args, *kwargs.values()))
            return _bounded(function(*args, **kwargs))

        return call

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template = super()._parse(source, name, filename)
        _loops_are_watched(template)
        return template

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805  # Jinja's names
        __self.budget.tick()
        _small((*args, *kwargs.values()))
        return _bounded(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        self.budget.tick()
        if operator == "*":
            _refuse_product(left, right)
            _refuse_product(right, left)
        elif operator == "**":
            if isinstance(right, int) and abs(right) > MAX_EXPONENT:
                raise SecurityError("it asks for a value that is too large")
        elif operator == "%" and isinstance(left, str):
            raise SecurityError("formatting with % is not allowed")
        return _bounded(super().call_binop(context, operator, left, right))

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


def _refuse_product(value: Any, times: Any) -> None:
    if (
        isinstance(times, int)
        and isinstance(value, str | bytes | list | tuple)
        and len(value) * times > MAX_CHARS
    ):
        raise SecurityError("it asks for a value that is too large")
    if isinstance(value, int) and isinstance(times, int) and value.bit_length() + times.bit_length() > 4096:
        raise SecurityError("it asks for a number that is too large")


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
