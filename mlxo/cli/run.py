"""`mlxo run`: one answer, or a conversation when nothing is piped and no prompt is given."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from mlxo.cli.client import Json
from mlxo.cli.models import pull_model
from mlxo.cli.session import Session, parse_think
from mlxo.core import duration, settings
from mlxo.core.errors import InvalidRequest, NotFound


class _Run(click.Command):
    """`--think` alone means true and never takes the next word, which is the prompt."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        end = args.index("--") if "--" in args else len(args)
        args = ["--think=true" if a == "--think" and i < end else a for i, a in enumerate(args)]
        return super().parse_args(ctx, args)


@click.command(cls=_Run)
@click.argument("model")
@click.argument("prompt", nargs=-1)
@click.option("--verbose", is_flag=True, help="Say how long it took, on standard error.")
@click.option(
    "--format", "format_", help='The shape of the answer: "json", a JSON schema or its file, or "regex:...".'
)
@click.option("--keepalive", help="How long the model stays loaded afterwards, such as 10m; -1s is forever.")
@click.option("--think", metavar="[=LEVEL]", help="Think first: true, false, low, medium, high or max.")
@click.option("--hidethinking", is_flag=True, help="Think, but do not print it.")
@click.option("--nowordwrap", is_flag=True, help="Do not break lines between words on a terminal.")
def run(
    model: str,
    prompt: tuple[str, ...],
    verbose: bool,
    format_: str | None,
    keepalive: str | None,
    think: str | None,
    hidethinking: bool,
    nowordwrap: bool,
) -> None:
    """Ask MODEL, which is fetched first if it is not here.

    PROMPT is what standard input holds, then the words. With neither, on a terminal, a conversation begins.
    Ctrl-C cancels the answer; outside a conversation the exit code is then 130.
    """
    known = settings.load()
    session = Session(
        known,
        model,
        format=_format(format_),
        think=None if think is None else parse_think(think),
        keep_alive=keepalive,
        hide_thinking=hidethinking,
        verbose=verbose,
        wrap=not nowordwrap,
        record=known.history,
    )
    if keepalive is not None:
        duration.parse(keepalive)  # a slip is better told before the model is fetched
    words = [*_piped(), *prompt]
    try:
        session.show()
    except NotFound:
        pull_model(session.client(), model)
        session.show()
    if words or not (sys.stdin.isatty() and sys.stdout.isatty()):
        session.answer("/api/generate", session.request(prompt=" ".join(words)))
        return
    from mlxo.cli.repl import converse

    converse(session)


def _piped() -> list[str]:
    """What standard input holds when it is no terminal."""
    if sys.stdin is None or sys.stdin.isatty():
        return []
    text = sys.stdin.buffer.read().decode("utf-8", "replace")
    return [text] if text else []


def _format(text: str | None) -> str | Json | None:
    """`json`, a JSON schema as text or the name of its file, or a regex behind `regex:`."""
    if text is None or text == "json":
        return text
    kind, _, rest = text.partition(":")
    if kind == "regex":
        return {"regex": rest}
    try:
        if not text.lstrip().startswith("{") and Path(text).is_file():
            text = Path(text).read_text()
        schema = json.loads(text)
    except (OSError, ValueError, RecursionError):
        schema = None
    if not isinstance(schema, dict):
        raise InvalidRequest(
            f'invalid format: "{text[:80]}"; expected "json" or a valid JSON Schema object',
            'a schema\'s file will do, and so will "regex:[a-z]+"',
        )
    return schema
