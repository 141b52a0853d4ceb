"""What FROM, ADAPTER and DRAFT mean on this machine. `mlxo create` and `mlxo modelfile lint` refuse alike."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import msgspec

from mlxo.core.errors import InvalidRequest, ModelfileError, UnsupportedModel
from mlxo.core.names import ModelName
from mlxo.modelfile import Directive, Modelfile
from mlxo.store import folder as folders

# A source with one of these in front is the server's to find; it is never a path here.
REMOTE = ("package:", "hf.co/", "huggingface.co/", "http://", "https://")
MAGIC = b"GGUF"
# What the store refuses by a field of its recipe.
_FIELDS = ("adapter", "template", "requires")


class Source(NamedTuple):
    """What a model is made from: a model's name, or files by the names they are sent under."""

    model: str | None
    files: dict[str, Path]


def find(modelfile: Modelfile, folder: Path) -> Source:
    """Resolve paths from `folder`. Raises ModelfileError, with the line, for what cannot be created."""
    source = Source(None, {})
    for directive, line in zip(modelfile.directives, modelfile.lines, strict=True):
        try:
            if directive.name == "from" and directive.args:
                source = _joined(source, directive.args, folder)
            else:
                _check(directive, folder)
        except InvalidRequest as e:
            raise ModelfileError(e.message, line, e.hint) from None
    return source


def _joined(source: Source, wanted: str, folder: Path) -> Source:
    """`source` with one more FROM, where that can be."""
    found = _local(wanted, folder)
    if found is None:
        if not wanted.startswith(REMOTE):
            ModelName.parse(wanted)
        if source.model not in (None, wanted):
            raise InvalidRequest(f"FROM names two models, {source.model} and {wanted}", "keep one of them")
        source = source._replace(model=wanted)
    files = dict(source.files)
    for where, path in (found or {}).items():
        if files.setdefault(where, path) != path:
            raise InvalidRequest(f"two files are called {where}: {files[where]} and {path}", "rename one")
    if source.model and files:
        raise InvalidRequest(f"FROM names a model, {source.model}, and files", "keep one of them")
    return Source(source.model, files)


def _check(directive: Directive, folder: Path) -> None:
    if directive.name == "draft" and _local(directive.args, folder) is not None:
        raise InvalidRequest(
            f"DRAFT {directive.args} is a file or a folder", "create it as a model first, and name that"
        )
    if directive.name in _FIELDS:
        from mlxo.store.create import Recipe, check_recipe

        check_recipe(msgspec.structs.replace(Recipe(from_="-"), **{directive.name: directive.args}))


def _local(source: str, folder: Path) -> dict[str, Path] | None:
    """The files that `source` means on this machine by their names; None when it is a model's name.

    A path that is written as one (`./x`, `/x`, `~/x`, `x.gguf`) must be there.
    """
    if source.startswith(REMOTE):
        return None
    path = folder / os.path.expanduser(source)
    written_as_path = source.startswith((".", "/", "~")) or source.endswith((".gguf", ".safetensors"))
    if path.is_dir():
        names = folders.names(path)
        if written_as_path or any(folders.is_weights(n) or n.endswith(".gguf") for n in names):
            return _gather(path, names)
        return None
    if path.is_file():
        _check_magic(path)
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
        if path.name.endswith(".gguf"):
            _check_magic(path)
    return found


def _check_magic(path: Path) -> None:
    """Raises UnsupportedModel for a file that is not GGUF, before a byte of it is sent."""
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise UnsupportedModel(
                f"{path} is no GGUF file", "FROM takes a model's name, a GGUF file or a folder of safetensors"
            )
