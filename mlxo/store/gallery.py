"""The gallery: Modelfiles that ship with mlxo, Modelfiles/<family>/<variant>. Each names what it makes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import mlxo
from mlxo.core.names import ModelName
from mlxo.modelfile import Modelfile, parse


def folder() -> Path:
    """Inside an installed mlxo, or beside the package in a checkout."""
    package = Path(mlxo.__file__).parent
    inside = package / "gallery"
    return inside if inside.is_dir() else package.parent / "Modelfiles"


def entries() -> Iterator[Modelfile]:
    for path in sorted(folder().glob("*/*")):
        if path.is_file() and not path.name.startswith("."):
            yield parse(path.read_bytes())


def names(modelfile: Modelfile) -> tuple[ModelName, ...]:
    """What the file makes: its name, then its aliases."""
    given = ((modelfile.name,) if modelfile.name else ()) + modelfile.aliases
    return tuple(ModelName.parse(name) for name in given)


def find(name: ModelName) -> Modelfile | None:
    return next((m for m in entries() if name.key in (n.key for n in names(m))), None)


def listing() -> str:
    """The names that can be pulled, for a hint."""
    return ", ".join(sorted(n.short for m in entries() for n in names(m)[:1]))
