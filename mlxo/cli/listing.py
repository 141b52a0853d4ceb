"""What list and ps print. Apart from models.py, so that a listing without arguments need not import click."""

from __future__ import annotations

import sys

from mlxo.cli import output
from mlxo.cli.client import Json
from mlxo.cli.connect import connect


def list_models(prefix: str = "", as_json: bool = False) -> None:
    """The models on disk whose name begins with `prefix`, in any case."""
    rows = connect().get("/api/tags").get("models") or []
    rows = matching(rows, prefix)
    if as_json:
        output.print_json(rows)
    else:
        sys.stdout.write(list_table(rows))


def matching(rows: list[Json], prefix: str) -> list[Json]:
    return [r for r in rows if str(r.get("name")).lower().startswith(prefix.lower())]


def list_table(rows: list[Json]) -> str:
    return output.table(
        ("NAME", "ID", "SIZE", "MODIFIED"),
        [
            (r["name"], r["digest"][:12], output.size(r["size"]), output.ago(str(r.get("modified_at"))))
            for r in rows
        ],
    )


def ps(prefix: str = "", as_json: bool = False) -> None:
    """The models in memory whose name begins with `prefix`, in any case."""
    rows = connect().get("/api/ps").get("models") or []
    rows = matching(rows, prefix)
    if as_json:
        output.print_json(rows)
    else:
        sys.stdout.write(
            output.table(("NAME", "ID", "SIZE", "PROCESSOR", "CONTEXT", "UNTIL"), map(_loaded, rows))
        )


def _loaded(row: Json) -> tuple[str, ...]:
    return (
        row["name"],
        row["digest"][:12],
        output.size(row["size"]),
        output.processor(row["size"], row["size_vram"]),
        str(row.get("context_length", 0)),
        output.until(str(row.get("expires_at"))),
    )
