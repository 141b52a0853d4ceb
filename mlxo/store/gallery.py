"""The gallery: Modelfiles that ship with mlxo, Modelfiles/<family>/<variant>. Each names what it makes.

A family without a tag means the variant whose file says `# alias: FAMILY:latest`; one file of each says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import mlxo
from mlxo.core.names import DEFAULT_NAMESPACE, ModelName
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


def families() -> dict[str, list[Modelfile]]:
    """The variants of each family, what the family's name alone means first."""
    found: dict[str, list[Modelfile]] = {}
    for modelfile in entries():
        found.setdefault(names(modelfile)[0].model, []).append(modelfile)
    return {family: sorted(found[family], key=lambda m: not m.aliases) for family in sorted(found)}


def variants(name: ModelName) -> list[str]:
    """What the family that `name` asks for comes as; nothing when it is no family of the gallery."""
    known = families().get(name.model.lower(), []) if name.namespace == DEFAULT_NAMESPACE else []
    return [names(modelfile)[0].short for modelfile in known]
