"""The two listings, list and ps. They are plain functions: importing click would be a sixth of their time."""

from __future__ import annotations

import sys

from mlxo.cli import output
from mlxo.cli.client import Json
from mlxo.cli.connect import connect
from mlxo.core.errors import InvalidRequest

USAGE = """\
Usage: mlxo {verb} [OPTIONS] [PREFIX]

  List the models {where}, those whose name begins with PREFIX.

Options:
  --json  Print JSON.
  --help  Show this message and exit.
"""


def list_models(argv: list[str]) -> int:
    if "--help" in argv or "-h" in argv:
        print(USAGE.format(verb="list", where="on disk"), end="")
        return 0
    prefix, as_json = _arguments("list", argv)
    rows = connect().get("/api/tags").get("models") or []
    rows = [r for r in rows if str(r.get("name")).lower().startswith(prefix.lower())]
    if as_json:
        output.print_json(rows)
    else:
        sys.stdout.write(list_table(rows))
    return 0


def list_table(rows: list[Json]) -> str:
    return output.table(
        ("NAME", "ID", "SIZE", "MODIFIED"),
        [
            (r["name"], r["digest"][:12], output.size(r["size"]), output.ago(str(r.get("modified_at"))))
            for r in rows
        ],
    )


def ps(argv: list[str]) -> int:
    if "--help" in argv or "-h" in argv:
        print(USAGE.format(verb="ps", where="in memory"), end="")
        return 0
    prefix, as_json = _arguments("ps", argv)
    rows = connect().get("/api/ps").get("models") or []
    rows = [r for r in rows if str(r.get("name")).startswith(prefix)]
    if as_json:
        output.print_json(rows)
    else:
        sys.stdout.write(
            output.table(("NAME", "ID", "SIZE", "PROCESSOR", "CONTEXT", "UNTIL"), map(_loaded, rows))
        )
    return 0


def _loaded(row: Json) -> tuple[str, ...]:
    return (
        row["name"],
        row["digest"][:12],
        output.size(row["size"]),
        output.processor(row["size"], row["size_vram"]),
        str(row.get("context_length", 0)),
        output.until(str(row.get("expires_at"))),
    )


def _arguments(verb: str, argv: list[str]) -> tuple[str, bool]:
    """PREFIX and --json, in any order. Raises InvalidRequest."""
    words = [a for a in argv if a != "--json"]
    option = next((w for w in words if w.startswith("-")), None)
    if option is not None:
        raise InvalidRequest(f"No such option '{option}'", f"see: mlxo {verb} --help")
    if len(words) > 1:
        raise InvalidRequest(f"Got unexpected extra argument ({words[1]})", f"see: mlxo {verb} --help")
    return (words[0] if words else ""), "--json" in argv
