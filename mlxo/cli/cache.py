"""`mlxo cache`: the prompts kept on disk. It reads and deletes files alone; no server is needed."""

from __future__ import annotations

from collections.abc import Iterable

import click

from mlxo.cli import output
from mlxo.cli.client import Json
from mlxo.core import cachedir
from mlxo.core import settings as core_settings
from mlxo.core.paths import Paths


@click.group()
def cache() -> None:
    """Look after the prompts kept on disk, which models need not read again."""


@cache.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(as_json: bool) -> None:
    """Say where the prompts are, what they take, and whose they are."""
    settings = core_settings.load()
    paths = Paths(settings.home)
    facts = _facts(paths, settings.cache_size)
    if as_json:
        output.print_json(facts)
        return
    cap = output.size(facts["cap"]) if facts["cap"] else "nothing: MLXO_CACHE_SIZE is 0"
    print(f"{'folder':<9}{facts['folder']}\n{'size':<9}{output.size(facts['size'])} of {cap}")
    if facts["unreadable"]["files"]:
        lost = facts["unreadable"]
        print(f"{'unusable':<9}{output.size(lost['size'])} in {_count(lost['files'])}, the first to go")
    if facts["models"]:
        rows = [
            (m["name"], m["digest"][:12], str(m["records"]), output.size(m["size"])) for m in facts["models"]
        ]
        print("\n" + output.table(("NAME", "ID", "RECORDS", "SIZE"), rows), end="")


@cache.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def clear(as_json: bool) -> None:
    """Delete all prompts kept on disk. A running server goes on, and reads prompts anew."""
    folder = Paths(core_settings.load().home).prompts
    files = cachedir.scan(folder)
    freed = cachedir.delete(files)
    if as_json:
        output.print_json({"removed": len(files), "freed": freed})
    else:
        print(f"removed {_count(len(files))}, {output.size(freed)} freed")


def _facts(paths: Paths, cap: int) -> Json:
    files = cachedir.scan(paths.prompts)
    names = _names(paths)
    models = []
    for digest in {f.model for f in files if f.model}:
        own = [f for f in files if f.model == digest]
        name = ", ".join(names.get(digest, ())) or "(deleted)"
        models.append(
            {"name": name, "digest": digest, "records": sum(not f.part for f in own), "size": _sum(own)}
        )
    lost = [f for f in files if not f.model]
    return {
        "folder": str(paths.prompts),
        "cap": cap,
        "size": _sum(files),
        "models": sorted(models, key=lambda m: (-m["size"], m["digest"])),
        "unreadable": {"files": len(lost), "size": _sum(lost)},
    }


def _sum(files: Iterable[cachedir.File]) -> int:
    return sum(f.size for f in files)


def _count(files: int) -> str:
    return "1 file" if files == 1 else f"{files} files"


def _names(paths: Paths) -> dict[str, list[str]]:
    """Digest to names, of the models that are there."""
    from mlxo.store.manifests import Manifests

    found: dict[str, list[str]] = {}
    for stored in Manifests(paths).all()[0]:
        found.setdefault(stored.digest, []).append(stored.name.short)
    return found
