"""`mlxo show`, and the blocks that `/show info` prints too."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

import click

from mlxo.cli.client import Json
from mlxo.cli.connect import connect
from mlxo.cli.output import GAP, clean, number, print_json
from mlxo.core.errors import InvalidRequest

SELECTORS = ("license", "modelfile", "parameters", "template", "system")
LONG_VALUE = 60  # characters of a metadata value that are shown


@click.command()
@click.argument("model")
@click.option("--license", "license_", is_flag=True, help="Only the licence.")
@click.option("--modelfile", is_flag=True, help="Only the Modelfile.")
@click.option("--parameters", is_flag=True, help="Only the parameters.")
@click.option("--template", is_flag=True, help="Only the chat template.")
@click.option("--system", is_flag=True, help="Only the system message.")
@click.option("-v", "--verbose", is_flag=True, help="Metadata and tensors too.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(model: str, verbose: bool, as_json: bool, license_: bool, **selected: bool) -> None:
    """Show what MODEL is made of."""
    wanted = [s for s in SELECTORS if (license_ if s == "license" else selected[s])]
    if len(wanted) > 1:
        names = [f"'--{s}'" for s in ("license", "modelfile", "parameters", "system", "template")]
        raise InvalidRequest(f"only one of {', '.join(names[:-1])}, or {names[-1]} can be specified")
    details = connect().post("/api/show", {"model": model, "verbose": verbose})
    if as_json:
        print_json(details.get(wanted[0], "") if wanted else details)
    elif wanted:
        text = details.get(wanted[0]) or ""
        print("\n".join(text) if isinstance(text, list) else text)
    else:
        sys.stdout.write(blocks(details, verbose))


def blocks(details: Json, verbose: bool = False) -> str:
    """What a model is, block by block, from the answer of /api/show."""
    info: Json = details.get("model_info") or {}
    parts = [_block("Model", list(_model(details, info)))]
    parts.append(_block("Capabilities", [(c,) for c in details.get("capabilities") or ()]))
    parameters = [
        tuple(line.split(None, 1)) for line in (details.get("parameters") or "").splitlines() if line
    ]
    parts.append(_block("Parameters", parameters))
    if verbose:
        parts.append(_block("Metadata", [(k, _value(info[k])) for k in sorted(info)]))
        tensors = details.get("tensors") or ()
        parts.append(_block("Tensors", [(t["name"], t["type"], str(t["shape"])) for t in tensors]))
    parts.append(_block("System", _head(details.get("system") or "", verbose)))
    licence = details.get("license") or ""
    licence = "\n".join(licence) if isinstance(licence, list) else licence
    parts.append(_block("License", _head(licence, verbose)))
    return "".join(parts)


def _model(details: Json, info: Json) -> Iterator[tuple[str, str]]:
    facts: Json = details.get("details") or {}
    architecture = info.get("general.architecture") or facts.get("family") or ""
    yield "architecture", str(architecture)
    count = info.get("general.parameter_count")
    yield "parameters", number(int(count)) if count else str(facts.get("parameter_size") or "")
    for label, key in (("context length", "context_length"), ("embedding length", "embedding_length")):
        value = info.get(f"{architecture}.{key}") or facts.get(key)
        if value:
            yield label, str(value)
    yield "quantization", str(facts.get("quantization_level") or "")
    if details.get("requires"):
        yield "requires", str(details["requires"])


def _block(title: str, rows: Sequence[Sequence[str]]) -> str:
    """A heading and its rows in columns, then a blank line; nothing when there are no rows."""
    if not rows:
        return ""
    cells = [[clean(c).replace("\n", " ") for c in row] for row in rows]
    columns = max(map(len, cells))
    widths = [max(len(row[i]) for row in cells if i < len(row)) for i in range(columns)]
    lines = [GAP + "".join(c.ljust(w) + GAP for c, w in zip(row, widths, strict=False)) for row in cells]
    return f"  {title}\n" + "\n".join(lines) + "\n\n"


def _head(text: str, verbose: bool) -> list[tuple[str]]:
    """The first two lines that are not empty, then `...` where there are more; all of them when verbose."""
    lines = [(line.strip(),) for line in text.splitlines() if line.strip()]
    return lines if verbose or len(lines) <= 2 else [*lines[:2], ("...",)]


def _value(value: object) -> str:
    text = str(value)
    return text if len(text) <= LONG_VALUE else text[: LONG_VALUE - 3] + "..."
