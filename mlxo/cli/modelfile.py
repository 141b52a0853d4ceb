"""`mlxo modelfile`: work on a Modelfile without a server."""

from __future__ import annotations

import sys
from pathlib import Path

import click


@click.group()
def modelfile() -> None:
    """Check a Modelfile without a server."""


@modelfile.command()
@click.argument("file")
@click.option("--json", "as_json", is_flag=True, help="Print the instructions, in order, as JSON.")
def lint(file: str, as_json: bool) -> None:
    """Check FILE ("-" is standard input).

    The first problem is shown with its line, and the exit code is 1. With --json the files that FILE names
    need not be here.
    """
    import msgspec

    from mlxo.cli import sources
    from mlxo.modelfile import parse

    parsed = parse(sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes())
    parsed.check()
    for warning in parsed.warnings:
        click.echo(f"Warning: {warning}", err=True)
    count = len(parsed.directives)
    if as_json:
        click.echo(msgspec.json.encode(parsed.directives))
    else:
        sources.find(parsed, Path.cwd() if file == "-" else Path(file).absolute().parent)
        name = "Modelfile" if file == "-" else Path(file).name
        click.echo(f"{name}: {count} instruction{'s'[: count > 1]}, no problems")
