"""What goes first when the kept prompts take too much room."""

from __future__ import annotations

import os
from pathlib import Path

from mlxo.core import cachedir
from mlxo.core.cachedir import ABANDONED, File, surplus

NOW = 10_000.0
MODEL = "a" * 64


def file(name: str, used: float, model: str = MODEL, part: bool = False, size: int = 10) -> File:
    return File(Path(name), size, used, model, part)


def names(files: list[File]) -> list[str]:
    return [f.path.name for f in files]


def test_strangers_then_the_abandoned_then_the_least_recently_used() -> None:
    files = [
        file("new", NOW - 1),
        file("old", NOW - 3000),
        file("writing", NOW - 1, part=True),
        file("abandoned", NOW - ABANDONED, part=True),
        file("stranger", NOW, model=""),
    ]
    assert surplus(files, 50, 0, NOW) == []
    assert names(surplus(files, 49, 0, NOW)) == ["abandoned"]
    assert names(surplus(files, 50, 11, NOW)) == ["abandoned", "stranger"]
    assert names(surplus(files, 25, 0, NOW)) == ["abandoned", "stranger", "old"]
    # What somebody is writing counts and stays, so there may be no way to fit.
    assert names(surplus(files, 5, 0, NOW)) == ["abandoned", "stranger", "old", "new"]


def test_a_folder_is_read_without_trust(tmp_path: Path) -> None:
    ours = tmp_path / cachedir.current() / f"{MODEL}-{'0' * 16}"
    ours.mkdir(parents=True)
    record = ours / f"{'1' * 32}-{'2' * 32}.safetensors"
    record.write_bytes(b"x" * 5000)
    (ours / "half.part").write_bytes(b"x")
    strange = [
        ours / "notes.txt",
        tmp_path / "x.safetensors",
        tmp_path / "0-0.1" / f"{MODEL}-{'0' * 16}" / record.name,
        ours.with_name("upper-" + "0" * 16) / record.name,
    ]
    for path in strange:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    outside = tmp_path.parent / "outside"
    outside.mkdir()
    (outside / "precious").write_bytes(b"x")
    (tmp_path / "link").symlink_to(outside)
    (tmp_path / "loop").symlink_to(tmp_path)
    found = {f.path: f for f in cachedir.scan(tmp_path)}
    assert {p for p, f in found.items() if f.model and not f.part} == {record}
    assert {p.name for p, f in found.items() if f.part} == {"half.part"}
    assert {p for p, f in found.items() if not f.model} == {*strange, tmp_path / "link", tmp_path / "loop"}
    assert found[record].size >= 5000
    os.unlink(strange[0])  # another process was faster
    freed = cachedir.delete(found.values())
    assert freed >= 5000
    assert (outside / "precious").exists()
    assert cachedir.scan(tmp_path) == []
    assert cachedir.scan(tmp_path / "nowhere") == []
