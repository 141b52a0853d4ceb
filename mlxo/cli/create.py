"""`mlxo create`: read a Modelfile here, send what the server lacks of its files, have the model made."""

from __future__ import annotations

import hashlib
import os
import sys
from contextlib import closing
from pathlib import Path

import click
import msgspec

from mlxo.cli.client import BLOCK, Client, Json
from mlxo.cli.connect import connect
from mlxo.cli.progress import Progress
from mlxo.core.errors import InvalidName, InvalidRequest
from mlxo.core.names import ModelName
from mlxo.core.options import Options
from mlxo.modelfile import Modelfile, Quantize, parse, parse_quantize
from mlxo.store import folder as folders

STDIN = "-"
# A source with one of these in front is the server's to find; it is never a path here.
REMOTE = ("package:", "hf.co/", "huggingface.co/", "http://", "https://")


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
    sources = _sources(modelfile, folder, body)
    client = connect()
    with Progress() as progress:
        body |= _send(client, sources, progress)
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
    }
    return {"model": name, **{k: v for k, v in fields.items() if v not in (None, (), Options())}}


def _quantize_text(quantize: Quantize) -> str:
    return f"{quantize.bits} {quantize.group_size}" if quantize.mode == "affine" else quantize.mode


def _sources(modelfile: Modelfile, folder: Path, body: Json) -> dict[str, dict[str, Path]]:
    """The files to send, by field of the request; sources that are names go into `body`."""
    files: dict[str, Path] = {}
    for source in filter(None, modelfile.from_):
        found = _local(source, folder)
        if found is None:
            body["from"] = source
        for where, path in (found or {}).items():
            if files.setdefault(where, path) != path:
                raise InvalidRequest(f"two files are called {where}: {files[where]} and {path}", "rename one")
    sources = {"files": files}
    if modelfile.adapter:
        adapter = _local(modelfile.adapter, folder)
        if adapter is None:
            raise InvalidRequest(
                f"there is no adapter at {modelfile.adapter}", "ADAPTER names a file or a folder"
            )
        sources["adapters"] = adapter
    if modelfile.draft:
        if _local(modelfile.draft, folder) is not None:
            raise InvalidRequest(
                f"DRAFT {modelfile.draft} is a file or a folder", "create it as a model first, and name that"
            )
        body["draft"] = modelfile.draft
    return {field: found for field, found in sources.items() if found}


def _local(source: str, folder: Path) -> dict[str, Path] | None:
    """The files that `source` means on this machine by their names; None when it is a model's name.

    A path that is written as one (`./x`, `/x`, `~/x`, `x.gguf`) must be there.
    """
    if source.startswith(REMOTE):
        return None
    path = folder / os.path.expanduser(source)
    written_as_path = source.startswith((".", "/", "~")) or source.endswith((".gguf", ".safetensors"))
    if path.is_dir():
        names = [p.name for p in path.iterdir() if p.is_file()]
        if written_as_path or any(folders.is_weights(n) or n.endswith(".gguf") for n in names):
            return _gather(path, names)
        return None
    if path.is_file():
        return {path.name: path}
    if written_as_path:
        raise InvalidRequest(f"there is no file or folder {path}", f"the Modelfile says: {source}")
    return None


def _gather(folder: Path, names: list[str]) -> dict[str, Path]:
    """The files of a model folder: safetensors with what belongs to them, or GGUF."""
    ggufs = sorted(name for name in names if name.endswith(".gguf"))
    chosen = ggufs if ggufs and not any(map(folders.is_weights, names)) else folders.select(names)
    found = {name: folder / name for name in chosen}
    roots = [folder.resolve()]
    if roots[0].parent.name == "snapshots":  # a Hugging Face cache: links to ../../blobs
        roots.append(roots[0].parent.parent / "blobs")
    for path in found.values():
        if not any(path.resolve().is_relative_to(root) for root in roots):
            raise InvalidRequest(f"{path} is a link that leaves its folder", "copy the file there instead")
    return found


def _send(client: Client, sources: dict[str, dict[str, Path]], progress: Progress) -> Json:
    """Have the server hold every file; their digests by field and name. HEAD says what it holds already."""
    total = sum(path.stat().st_size for files in sources.values() for path in files.values())
    done = 0
    digests: Json = {}
    for field, files in sources.items():
        digests[field] = {}
        for name, path in files.items():
            sha = hashlib.sha256()
            with path.open("rb") as file:
                while block := file.read(BLOCK):
                    sha.update(block)
                    done += len(block)
                    progress.update(
                        {"status": "gathering model components", "total": total, "completed": done}
                    )
            digests[field][name] = f"sha256:{sha.hexdigest()}"
    for field, files in sources.items():
        for name, path in files.items():
            if not client.head(f"/api/blobs/{digests[field][name]}"):
                _upload(client, digests[field][name], path, progress)
    return digests


def _upload(client: Client, digest: str, path: Path, progress: Progress) -> None:
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        client.upload(
            f"/api/blobs/{digest}",
            file,
            size,
            lambda sent: progress.update(
                {"status": f"copying file {digest}", "total": size, "completed": sent}
            ),
        )
