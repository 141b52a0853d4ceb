"""The header reader against files that lie: each gives an MlxoError with a sentence, nothing else."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxo.core.errors import Corrupt, MlxoError, NotFound, UnsupportedModel
from mlxo.jobs.convert import Spec, convert
from mlxo.store import gguf
from tests.jobs.ggufs import (
    ARRAY,
    BOOL,
    BPE_TOKENS,
    F32,
    STRING,
    U32,
    U64,
    Shape,
    array_of,
    entry,
    head,
    model_file,
    pair,
    string,
    text,
    u32,
    weights,
)

F32_TYPE, Q4_0_TYPE = 0, 2


def read(tmp_path: Path, raw: bytes) -> gguf.Header:
    path = tmp_path / "file"
    path.write_bytes(raw)
    return gguf.read(path)


def test_every_kind_of_value(tmp_path: Path) -> None:
    codes = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
    values = {
        0: 200,
        1: -7,
        2: 60000,
        3: -300,
        4: 1 << 31,
        5: -5,
        6: 0.5,
        7: True,
        10: 1 << 63,
        11: -(1 << 40),
        12: 1e99,
    }
    pairs = [pair(f"v{kind}", kind, struct.pack(f"<{code}", values[kind])) for kind, code in codes.items()]
    pairs += [
        array_of(f"a{kind}", kind, 2, struct.pack(f"<2{code}", values[kind], 1))
        for kind, code in codes.items()
    ]
    nested = struct.pack("<IQ", U32, 1) + struct.pack("<I", 9)
    pairs += [
        string("text", "naïve 🦙"),
        array_of("texts", STRING, 2, text("a") + text("")),
        array_of("nested", ARRAY, 2, nested + nested),
        pair("broken", STRING, struct.pack("<Q", 1) + b"\xff"),
        array_of("none", F32, 0, b""),
    ]
    found = read(tmp_path, head(pairs))
    for kind, value in values.items():
        assert found.metadata[f"v{kind}"] == value
        assert list(found.numbers(f"a{kind}")) == [value, 1]
    assert found.text("text") == "naïve 🦙"
    assert found.strings("texts") == ["a", ""]
    assert found.metadata["broken"] == "\ufffd"
    nested_value = found.metadata["nested"]
    assert isinstance(nested_value, list)
    assert [list(item) for item in nested_value] == [[9], [9]]  # type: ignore[arg-type]
    assert found.tensors == {}


def test_a_tensor_and_its_place(tmp_path: Path) -> None:
    pairs = [string("general.architecture", "llama"), u32("general.alignment", 64)]
    raw = head(pairs, [entry("t", (32, 3), Q4_0_TYPE, 64), entry("v", (5,), F32_TYPE, 0)], version=2)
    base = -(-len(raw.rstrip(b"\0")) // 64) * 64
    found = read(tmp_path, raw.ljust(base, b"\0") + bytes(64 + 3 * 18))
    tensor = found.tensors["t"]
    assert (tensor.type.name, tensor.shape, tensor.size) == ("Q4_0", (3, 32), 54)
    assert tensor.offset == base + 64
    assert found.architecture == "llama"


def test_typed_access_refuses_other_types(tmp_path: Path) -> None:
    flag = pair("flag", BOOL, b"\1")
    nan = pair("nan", F32, struct.pack("<f", float("nan")))
    found = read(
        tmp_path, head([string("s", "x"), u32("i", 1), flag, nan, pair("eps", F32, struct.pack("<f", 1e-5))])
    )
    assert found.number("eps") == 1e-5, "the digits that were written, not the float32's"
    assert found.integer("absent", 3) == 3
    wrong: list[Callable[[], object]] = [
        lambda: found.integer("s"), lambda: found.integer("flag"), lambda: found.text("i"),
        lambda: found.number("nan"), lambda: found.flag("i", True), lambda: found.strings("i"),
        lambda: found.numbers("s"), lambda: found.architecture,
    ]  # fmt: skip
    for access in wrong:
        with pytest.raises(Corrupt):
            access()


HUGE = 1 << 62
LIES: dict[str, tuple[type[MlxoError], str, bytes]] = {
    "empty": (Corrupt, "empty", b""),
    "other": (Corrupt, "not a GGUF file", b"PK\3\4" + bytes(40)),
    "magic alone": (Corrupt, "ends in the middle", b"GGUF"),
    "version 1": (UnsupportedModel, "version 1", head(version=1)),
    "version 4": (UnsupportedModel, "version 4", head(version=4)),
    "big-endian": (UnsupportedModel, "big-endian", b"GGUF" + struct.pack(">IQQ", 3, 0, 0)),
    "many tensors": (Corrupt, "more than it has room for", head(counts=(HUGE, 0))),
    "many keys": (Corrupt, "more than it has room for", head(counts=(0, HUGE))),
    "twice a key": (Corrupt, "'k' twice", head([u32("k", 1), u32("k", 2)])),
    "no key": (Corrupt, "impossible length", head([u32("", 1)])),
    "key not text": (Corrupt, "not UTF-8", head([struct.pack("<Q", 2) + b"\xff\xfe" + bytes(16)])),
    "long text": (Corrupt, "ends in the middle", head([pair("k", STRING, struct.pack("<Q", HUGE))])),
    "long array": (Corrupt, "ends in the middle", head([array_of("k", U64, HUGE, b"")])),
    "long list": (Corrupt, "longer than the file", head([array_of("k", STRING, HUGE, b"")])),
    "unknown value": (Corrupt, "unknown type 99", head([pair("k", 99, bytes(8))])),
    "deep": (Corrupt, "too deeply", head([pair("k", ARRAY, struct.pack("<IQ", ARRAY, 1) * 4000)])),
    "split": (UnsupportedModel, "split over several files", head([u32("split.count", 3)])),
    "alignment": (Corrupt, "power of two", head([u32("general.alignment", 24)], [entry("t", (1,), 0, 0)])),
    "no dimensions": (Corrupt, "0 dimensions", head([], [entry("t", (), F32_TYPE, 0)])),
    "many dimensions": (Corrupt, "5 dimensions", head([], [entry("t", (1,) * 5, F32_TYPE, 0)])),
    "nothing in it": (Corrupt, "impossible shape", head([], [entry("t", (0, 4), F32_TYPE, 0)])),
    "half a block": (Corrupt, "impossible shape", head([], [entry("t", (33,), Q4_0_TYPE, 0)])),
    "odd place": (Corrupt, "impossible shape or place", head([], [entry("t", (1,), F32_TYPE, 7)])),
    "outside": (
        Corrupt,
        "ends before the data of tensor 't'",
        head([], [entry("t", (4,), F32_TYPE, 1 << 40)]),
    ),
    "overflow": (Corrupt, "ends before", head([], [entry("t", (1 << 33, 1 << 33), F32_TYPE, 0)])),
    "twice": (Corrupt, "two tensors named 't'", head([], [entry("t", (1,), 0, 0)] * 2) + bytes(64)),
    "overlap": (
        Corrupt,
        "'a' and 'b' of the GGUF file overlap",
        head([], [entry("a", (64,), F32_TYPE, 0), entry("b", (1,), F32_TYPE, 32)]) + bytes(512),
    ),
    "type by name": (
        UnsupportedModel,
        "'blk.0.x' is stored as MXFP4",
        head([], [entry("blk.0.x", (32,), 39, 0)]),
    ),
    "type by number": (UnsupportedModel, "stored as number 77", head([], [entry("t", (32,), 77, 0)])),
}


@pytest.mark.parametrize("name", LIES)
def test_a_lie_is_a_sentence(name: str, tmp_path: Path) -> None:
    kind, words, raw = LIES[name]
    with pytest.raises(kind, match=words):
        read(tmp_path, raw)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(NotFound, match="cannot read the GGUF file"):
            gguf.read(path)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A whole model of one layer, as small as it gets."""
    path = tmp_path_factory.mktemp("gguf") / "model"
    shape = Shape(hidden=32, layers=1, inner=32, heads=1, kv_heads=1, head=32)
    model_file(path, "llama", weights("llama", shape, len(BPE_TOKENS)), shape, default="Q8_0")
    return path.read_bytes()


def attempt(folder: Path, raw: bytes) -> None:
    """Import it: well, or with an error of ours."""
    source, out = folder / "source", folder / "out"
    source.write_bytes(raw)
    failure = None
    try:
        convert(Spec(source=str(source), out=str(out)), lambda *_: None)
    except MlxoError as error:
        failure = error
    for file in out.glob("*"):
        file.unlink()
    assert failure is None or (failure.message and "\n" not in failure.message)


def test_truncated_anywhere(good: bytes, tmp_path: Path) -> None:
    pairs = [
        string("s", "x" * 9),
        u32("i", 1),
        array_of("a", F32, 3, bytes(12)),
        array_of("l", STRING, 1, text("y")),
    ]
    small = head(pairs, [entry("t", (32, 2), Q4_0_TYPE, 0), entry("u", (4,), F32_TYPE, 64)]) + bytes(80)
    assert len(read(tmp_path, small).tensors) == 2
    for size in range(0, len(small), 7):
        with pytest.raises(MlxoError):
            read(tmp_path, small[:size])
    for size in range(0, len(good), len(good) // 40):
        with pytest.raises(MlxoError):
            read(tmp_path, good[:size])


@settings(max_examples=250, deadline=None)
@given(st.data())
def test_any_bytes_of_it_changed(
    good: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    raw = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, min(len(raw), 9000) - 1))
        raw[place : place + 1] = data.draw(
            st.one_of(st.binary(max_size=3), st.sampled_from([b"\xff" * 8, bytes(8)]))
        )
    attempt(tmp_path_factory.mktemp("fuzz"), bytes(raw))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300), st.integers(0, 3), st.integers(0, 3))
def test_any_bytes_after_the_counts(
    tmp_path_factory: pytest.TempPathFactory, raw: bytes, tensors: int, keys: int
) -> None:
    attempt(tmp_path_factory.mktemp("fuzz"), b"GGUF" + struct.pack("<IQQ", 3, tensors, keys) + raw)
