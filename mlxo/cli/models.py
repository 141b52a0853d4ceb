"""The verbs for models that are there, or will be: list, ps, pull, cp, rm, stop."""

from __future__ import annotations

import sys
from contextlib import closing

import click

from mlxo.cli import listing, output
from mlxo.cli.client import Client
from mlxo.cli.connect import connect
from mlxo.core.errors import InvalidRequest, MlxoError, NotFound


@click.command("list")
@click.argument("prefix", default="")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_models(prefix: str, as_json: bool) -> None:
    """List the models on disk, those whose name begins with PREFIX."""
    listing.list_models(prefix, as_json)


@click.command()
@click.argument("prefix", default="")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def ps(prefix: str, as_json: bool) -> None:
    """List the models in memory, those whose name begins with PREFIX."""
    listing.ps(prefix, as_json)


@click.command()
@click.argument("model")
def pull(model: str) -> None:
    """Fetch MODEL: a name of the gallery, or a Hugging Face repository such as org/repo."""
    pull_model(connect(), model, success=True)


def pull_model(client: Client, model: str, success: bool = False) -> None:
    """Pull with progress on standard error. What was fetched stays when the client leaves half-way.

    With `success` the last line says so.
    """
    from mlxo.cli.progress import Progress

    with closing(client.stream("/api/pull", {"model": model})) as lines, Progress(success) as progress:
        for line in lines:
            progress.update(line)


@click.command()
@click.argument("source")
@click.argument("destination")
def cp(source: str, destination: str) -> None:
    """Copy SOURCE to DESTINATION; both share their files."""
    connect().post("/api/copy", {"source": source, "destination": destination})
    print(f"copied '{source}' to '{destination}'")


@click.command()
@click.argument("models", nargs=-1, required=True)
def rm(models: tuple[str, ...]) -> int:
    """Unload and remove MODELS. The others go although one of them is not there."""
    client = connect()
    failed = 0
    for model in models:
        try:
            unload(client, model)
            client.delete("/api/delete", {"model": model})
            print(f"deleted '{model}'", flush=True)
        except (NotFound, InvalidRequest) as e:
            failed += 1
            print(f"Error: {e.message}", file=sys.stderr)
    if failed:
        print(output.hint("see what is there: mlxo list"), file=sys.stderr)
    return 1 if failed else 0


@click.command()
@click.argument("model")
def stop(model: str) -> None:
    """Unload MODEL from memory."""
    try:
        unload(connect(), model)
    except NotFound:
        raise MlxoError(f'couldn\'t find model "{model}" to stop', "see what is loaded: mlxo ps") from None


def unload(client: Client, model: str) -> None:
    client.post("/api/generate", {"model": model, "keep_alive": 0, "stream": False})
