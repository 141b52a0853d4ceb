"""`mlxo create`: read a Modelfile here, send what the server lacks of its files, have the model made."""

from __future__ import annotations

import hashlib
import os
import sys
from contextlib import closing
from pathlib import Path

import click
import msgspec

from mlxo.cli import sources
from mlxo.cli.client import BLOCK, Client, Json
from mlxo.cli.connect import connect
from mlxo.cli.progress import Progress
from mlxo.core.errors import InvalidName, InvalidRequest
from mlxo.core.names import ModelName
from mlxo.core.options import Options
from mlxo.modelfile import Modelfile, Quantize, parse, parse_quantize

STDIN = "-"


@click.command()
@click.argument("name", required=False)
@click.option(
    "-f", "--file", default="Modelfile", show_default=True, help='The Modelfile; "-" is standard input.'
)
@click.option("-q", "--quantize", "quantize", help="Quantise to 4, 8, mxfp4, nvfp4 or mxfp8, or e.g. '4 32'.")
def create(name: str | None, file: str, quantize: str | None) -> None:
    """Make a model from a Modelfile.

    Without NAME it is called what the Modelfile's "# name:" line says, else as the Modelfile's folder.
    """
    modelfile = parse(_read(file))
    modelfile.check()
    for warning in modelfile.warnings:
        print(f"Warning: {warning}", file=sys.stderr)
    folder = Path.cwd() if file == STDIN else Path(file).absolute().parent
    body = _body(modelfile, _name(name, modelfile, file, folder))
    if quantize is not None:
        body["quantize"] = _quantize_text(parse_quantize(quantize))
    source = sources.find(modelfile, folder)
    if source.model:
        body["from"] = source.model
    client = connect()
    with Progress(success=True) as progress:
        if source.files:
            body["files"] = _send(client, source.files, progress)
        with closing(client.stream("/api/create", msgspec.to_builtins(body))) as lines:
            for line in lines:
                progress.update(line)


def _read(file: str) -> bytes:
    if file == STDIN:
        return sys.stdin.buffer.read()
    try:
        return Path(file).read_bytes()
    except FileNotFoundError:
        raise InvalidRequest(
            f"there is no Modelfile at {file}",
            "write one that begins with FROM, or name it: mlxo create -f FILE",
        ) from None


def _name(given: str | None, modelfile: Modelfile, file: str, folder: Path) -> str:
    name = given or modelfile.name
    if name is None and file == STDIN:
        raise InvalidRequest("the model has no name", "type: mlxo create NAME -f -")
    try:
        ModelName.parse(name or folder.name)
    except InvalidName as e:
        raise InvalidName(e.message, "name the model: mlxo create NAME -f FILE") from None
    return name or folder.name


def _body(modelfile: Modelfile, name: str) -> Json:
    """The request, all but what comes from files. Fields without a value are left out."""
    fields: Json = {
        "template": modelfile.template,
        "system": modelfile.system,
        "license": modelfile.licenses,
        "parameters": modelfile.options,
        "messages": modelfile.messages,
        "renderer": modelfile.renderer,
        "parser": modelfile.parser,
        "requires": modelfile.requires,
        "quantize": _quantize_text(modelfile.quantize) if modelfile.quantize else None,
        "keep_alive": modelfile.keep_alive,
        "draft": modelfile.draft,
    }
    return {"model": name, **{k: v for k, v in fields.items() if v not in (None, (), Options())}}


def _quantize_text(quantize: Quantize) -> str:
    return f"{quantize.bits} {quantize.group_size}" if quantize.mode == "affine" else quantize.mode


def _send(client: Client, files: dict[str, Path], progress: Progress) -> dict[str, str]:
    """Have the server hold every file; their digests by name. HEAD says what it holds already."""
    total = sum(path.stat().st_size for path in files.values())
    done = 0
    digests: dict[str, str] = {}
    for name, path in files.items():
        sha = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                sha.update(block)
                done += len(block)
                progress.update({"status": "gathering model components", "total": total, "completed": done})
        digests[name] = f"sha256:{sha.hexdigest()}"
    missing = {d: files[name] for name, d in digests.items() if not client.head(f"/api/blobs/{d}")}
    _upload(client, missing, progress)
    return digests


def _upload(client: Client, blobs: dict[str, Path], progress: Progress) -> None:
    total = sum(path.stat().st_size for path in blobs.values())
    done = 0
    for digest, path in blobs.items():
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            before = done

            def report(sent: int, before: int = before) -> None:
                progress.update({"status": "copying files", "total": total, "completed": before + sent})

            client.upload(f"/api/blobs/{digest}", file, size, report)
            done += size
