"""Which files of a folder, an upload or a repository make a model."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable
from pathlib import Path

from mlxo.core.errors import InvalidRequest, NotFound, UnsupportedModel
from mlxo.store import disk

WEIGHTS = "model*.safetensors"
_OTHERS = (
    "*.json",
    "*.jinja",
    "tokenizer.model",
    "spiece.model",
    "merges.txt",
    "vocab.txt",
    "*.tiktoken",
)
# How an embedding model makes one vector of all; the only file in a folder of its own.
POOLING = "1_Pooling/config.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


def check_relative(name: str) -> str:
    """A path below some folder. Raises InvalidRequest: names come from uploads and from hubs."""
    parts = name.split("/")
    bad = (
        name.startswith("/") or "\\" in name or any(ord(c) < 32 for c in name) or re.match(r"[A-Za-z]:", name)
    )
    if not name or len(name) > 1000 or bad or any(part in ("", ".", "..") for part in parts):
        raise InvalidRequest(f"file path must be relative: {name[:80]!r}")
    return name


def is_weights(name: str) -> bool:
    return fnmatch.fnmatchcase(name, WEIGHTS)


def select(names: Iterable[str]) -> list[str]:
    """The names that belong to the model. Raises UnsupportedModel when there are no safetensors weights."""
    names = [check_relative(name) for name in names]
    top = sorted(name for name in names if "/" not in name and not name.startswith("."))
    if not any(is_weights(name) for name in top):
        pickle = next((name for name in top if name.lower().endswith(_PICKLES)), None)
        if pickle is not None:
            raise UnsupportedModel(
                f"{pickle[:80]} is a pickle, which can run code when it is read; mlxo reads safetensors only",
                "look for a safetensors version of the model, or convert it",
            )
        raise UnsupportedModel(
            "no Modelfile or safetensors files found",
            "a model folder holds config.json and model*.safetensors",
        )
    chosen = [n for n in top if is_weights(n) or any(fnmatch.fnmatchcase(n, p) for p in _OTHERS)]
    return [*chosen, POOLING] if POOLING in names else chosen


def names(folder: Path) -> list[str]:
    """What lies in a folder and may be a model's. Raises OSError."""
    found = [path.name for path in folder.iterdir() if path.is_file()]
    return [*found, POOLING] if (folder / POOLING).is_file() else found


def scan(folder: Path) -> dict[str, Path]:
    """The files of a model's folder by name. Raises InvalidRequest for a link that leaves the folder."""
    root = folder.resolve()
    if not root.is_dir():
        raise NotFound(f"there is no folder {folder}")
    with disk.guard(folder):
        found = select(names(root))
    for name in found:
        if not (root / name).resolve().is_relative_to(root):
            raise InvalidRequest(
                f"insecure path: {name[:80]!r} is a link that leaves {folder}",
                "copy the file into the folder",
            )
    return {name: root / name for name in found}
