"""The folder of kept prompts, <home>/cache/prompts: what lies in it and what has to go. No tensors, no locks.

    <format>-<mlx-lm version>/<model digest>-<key>/<parent>-<record>.safetensors

Several processes write, read and delete here at once: a record appears by a rename and is never changed, so
whoever finds one gone treats it as never having been there.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

FORMAT = 1
SUFFIX = ".safetensors"
PART = ".part"
# Seconds after which a half-written file belongs to nobody.
ABANDONED = 600.0

_FOLDER = re.compile(r"([0-9a-f]{64})-[0-9a-f]{16}")
_RECORD = re.compile(r"[0-9a-f]{32}-[0-9a-f]{32}" + re.escape(SUFFIX))


class File(NamedTuple):
    """`model` is the digest of the model whose record it is; empty when nothing can read it.

    `used` is when it was written or last read, seconds since the epoch; `part` a half-written record.
    """

    path: Path
    size: int
    used: float
    model: str
    part: bool


def current() -> str:
    """The name of the folder that this version of mlxo reads."""
    try:
        library = version("mlx-lm")
    except PackageNotFoundError:
        library = "none"
    return f"{FORMAT}-{re.sub(r'[^0-9A-Za-z.]', '_', library)}"


def scan(folder: Path) -> list[File]:
    """Every file under `folder`, whoever put it there. Links count as themselves."""
    return list(_scan(folder, folder, current()))


def _scan(folder: Path, root: Path, name: str) -> Iterator[File]:
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            path = Path(entry.path)
            if entry.is_dir(follow_symlinks=False):
                yield from _scan(path, root, name)
                continue
            with contextlib.suppress(FileNotFoundError):
                stat = entry.stat(follow_symlinks=False)
                yield _file(path, path.relative_to(root).parts, stat, name)


def _file(path: Path, place: tuple[str, ...], stat: os.stat_result, name: str) -> File:
    # What it takes on the disk, or its length where the file system does not say.
    size = max(stat.st_size, getattr(stat, "st_blocks", 0) * 512)
    model, part = "", False
    if len(place) == 3 and place[0] == name and (known := _FOLDER.fullmatch(place[1])):
        part = place[2].endswith(PART)
        if part or _RECORD.fullmatch(place[2]):
            model = known.group(1)
    return File(path, size, stat.st_mtime, model, part)


def surplus(files: Iterable[File], cap: int, wanted: int, now: float) -> list[File]:
    """What has to go so that `wanted` more bytes fit under `cap`, in the order of going.

    First what nobody can read, then the least recently used. The half-written files of the living count and
    stay.
    """
    found = list(files)
    over = sum(f.size for f in found) + wanted - cap
    going = []
    for file in sorted(found, key=lambda f: (_readable(f, now), f.used)):
        if over <= 0:
            break
        if file.part and now - file.used < ABANDONED:
            continue
        going.append(file)
        over -= file.size
    return going


def _readable(file: File, now: float) -> bool:
    return bool(file.model) and not (file.part and now - file.used >= ABANDONED)


def delete(files: Iterable[File]) -> int:
    """Delete files, and the folders that this leaves empty; the bytes that it freed. Raises OSError."""
    freed = 0
    folders = set()
    for file in files:
        with contextlib.suppress(FileNotFoundError):
            file.path.unlink()
            freed += file.size
            folders.add(file.path.parent)
    for folder in folders:
        with contextlib.suppress(OSError):  # not empty, or gone already
            folder.rmdir()
            folder.parent.rmdir()
    return freed
