"""The verbs that look after the registry: verify and gc."""

from __future__ import annotations

from contextlib import closing

import click

from mlxo.cli import output
from mlxo.cli.client import Json
from mlxo.cli.connect import connect
from mlxo.core import duration


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def verify(as_json: bool) -> int:
    """Read every blob and compare it with its digest. The exit code is 1 when something is wrong."""
    from mlxo.cli.progress import Progress

    last: Json = {}
    with closing(connect().stream("/api/verify", {})) as lines, Progress() as progress:
        for last in lines:
            progress.update(last)
    problems = last.get("problems") or []
    checked = int(last.get("checked") or 0)
    if as_json:
        output.print_json({"checked": checked, "problems": problems})
    else:
        for p in problems:
            where = " ".join(str(p[k]) for k in ("model", "digest") if p.get(k))
            print(f"{output.clean(where)}: {output.clean(str(p.get('problem')))}")
        found = _count(len(problems), "problem") if problems else "all good"
        print(f"checked {_count(checked, 'blob')}: {found}")
        if problems:
            print("mend a model by pulling or creating it again")
    return 1 if problems else 0


@click.command()
@click.option("--grace", default="1h", show_default=True, help="Keep what is younger than this, such as 30m.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def gc(grace: str, as_json: bool) -> None:
    """Delete the blobs, views and half-written files that no model refers to."""
    answer = connect().post("/api/gc", {"grace": max(0.0, duration.parse(grace))}, timeout=None)
    if as_json:
        output.print_json(answer)
    else:
        removed, freed = int(answer.get("removed") or 0), int(answer.get("freed") or 0)
        print(f"removed {_count(removed, 'file')}, {output.size(freed)} freed")


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
