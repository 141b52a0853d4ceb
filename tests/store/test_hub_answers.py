"""What a hub may say, and what a name may mean there."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from mlxo.core.errors import (
    Corrupt,
    Forbidden,
    InvalidRequest,
    MlxoError,
    NotFound,
    UnsupportedModel,
    UpstreamError,
)
from mlxo.store import hub_http
from mlxo.store.create import Recipe
from tests.fakes.hub import COMMIT, FakeHub, Repo
from tests.store.conftest import NAME, Bench, run


def test_a_file_that_is_not_what_was_listed_is_refused(
    bench: Bench, hub: FakeHub, content: dict[str, bytes]
) -> None:
    def lie(entry: dict[str, Any]) -> None:
        entry["blobId"] = "0" * 40

    hub.repos["org/tiny"].tampered = lie
    with pytest.raises(Corrupt, match=r"config\.json of org/tiny does not have the digest"):
        run(bench)
    assert bench.registry.list() == []
    assert bench.leftovers() == []


def test_a_file_that_is_larger_than_listed_is_refused(
    bench: Bench, hub: FakeHub, content: dict[str, bytes]
) -> None:
    def lie(entry: dict[str, Any]) -> None:
        entry["size"] = 10

    hub.repos["org/tiny"].tampered = lie
    with pytest.raises(UpstreamError, match=r"sends more of config\.json than it listed"):
        run(bench)


HOSTILE = [
    "../../evil.json",
    "/etc/evil.json",
    "a/../../evil.json",
    "..\\evil.json",
    "x\0.json",
    "C:/evil.json",
    "",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file_names_are_refused(
    bench: Bench, hub: FakeHub, content: dict[str, bytes], name: str
) -> None:
    content[name] = b"{}"
    with pytest.raises(InvalidRequest, match="file path must be relative"):
        run(bench)
    assert hub.sent == Counter()
    assert not list(bench.home.parent.rglob("*evil*"))


@pytest.mark.parametrize(
    "tamper",
    [
        {"size": -1},
        {"size": "many"},
        {"rfilename": 7},
        {"lfs": {"sha256": "../../../x", "size": 1}},
        {"lfs": []},
        {"blobId": None},
    ],
)
def test_a_listing_that_makes_no_sense_is_refused(
    bench: Bench, hub: FakeHub, content: dict[str, bytes], tamper: dict[str, Any]
) -> None:
    hub.repos["org/tiny"].tampered = lambda entry: entry.update(tamper)
    with pytest.raises((UpstreamError, Corrupt)):
        run(bench)
    assert bench.registry.list() == []
    assert sorted(p.name for p in bench.home.iterdir()) in (
        ["store.lock", "tmp"],
        ["blobs", "store.lock", "tmp"],
    )


def test_a_repository_of_pickles_is_refused(bench: Bench, hub: FakeHub) -> None:
    hub.repos["org/old"] = Repo({"config.json": b"{}", "pytorch_model.bin": b"x"})
    with pytest.raises(UnsupportedModel, match=r"pytorch_model\.bin is a pickle"):
        run(bench, "hf.co/org/old")
    assert hub.sent == Counter()


@pytest.mark.parametrize(
    ("status", "code", "error", "words", "hint"),
    [
        (
            401,
            "RepoNotFound",
            NotFound,
            "file does not exist: 127.* has no org/tiny, or it is private",
            "HF_TOKEN",
        ),
        (404, "RepoNotFound", NotFound, "file does not exist", "HF_TOKEN"),
        (403, "GatedRepo", Forbidden, "org/tiny on 127.* is gated", "ask for access"),
        (401, "GatedRepo", Forbidden, "org/tiny on 127.* is gated", "HF_TOKEN"),
        (403, "", Forbidden, "refuses org/tiny: status 403", "HF_TOKEN"),
        (418, "", UpstreamError, "answered status 418", "later"),
    ],
)
def test_refusals_are_one_sentence_and_a_hint(
    bench: Bench,
    hub: FakeHub,
    content: dict[str, bytes],
    status: int,
    code: str,
    error: type[MlxoError],
    words: str,
    hint: str,
) -> None:
    hub.repos["org/tiny"].status = status
    hub.repos["org/tiny"].error_code = code
    with pytest.raises(error, match=words) as caught:
        run(bench)
    assert caught.value.hint is not None
    assert hint in caught.value.hint
    assert "\n" not in caught.value.message
    assert bench.registry.list() == []


def test_a_token_opens_a_private_repository(
    bench: Bench, hub: FakeHub, content: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repos["org/tiny"].token = "secret"
    with pytest.raises(NotFound):
        run(bench)
    monkeypatch.setenv("HF_TOKEN", "secret")
    run(bench)
    assert {s.token for s in hub.seen if s.path.startswith("/storage/")} == {None}
    assert bench.registry.resolve(NAME).name == "hf.co/org/tiny:latest"


def test_a_tag_is_a_revision(bench: Bench, hub: FakeHub, content: dict[str, bytes]) -> None:
    hub.repos["org/tiny"].revisions = ("main", "v2", COMMIT)
    run(bench, f"{NAME}:v2")
    assert [e.name for e in bench.registry.list()] == ["hf.co/org/tiny:v2"]
    assert any(s.path.endswith("/revision/v2") for s in hub.seen)
    with pytest.raises(NotFound, match="has no such revision"):
        run(bench, f"{NAME}:v3")


def test_no_network_is_one_sentence(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_http, "_PAUSE", 0.001)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UpstreamError, match=r"127\.0\.0\.1:9 cannot be reached") as caught:
        run(bench)
    assert "HF_ENDPOINT" in (caught.value.hint or "")
    monkeypatch.setenv("HF_ENDPOINT", "nonsense")
    with pytest.raises(InvalidRequest, match="HF_ENDPOINT='nonsense' is no address"):
        run(bench)


def test_an_answer_that_is_no_listing_is_one_sentence(
    bench: Bench, hub: FakeHub, content: dict[str, bytes]
) -> None:
    hub.repos["org/tiny"].tampered = lambda entry: entry.clear()
    with pytest.raises(UpstreamError, match="sent a listing of org/tiny that cannot be read"):
        run(bench)


@pytest.mark.parametrize(
    ("tag", "asked"),
    [("", "tiny.Q4_K_M.gguf"), (":q8_0", "tiny.Q8_0.gguf"), (":Q4_K_M", "tiny.Q4_K_M.gguf")],
)
def test_a_tag_chooses_the_gguf_file(bench: Bench, hub: FakeHub, tag: str, asked: str) -> None:
    files = {f"tiny.{q}.gguf": b"GGUF\x03\0\0\0" + q.encode() for q in ("BF16", "Q4_K_M", "Q8_0")}
    hub.repos["org/gguf"] = Repo(files | {"mmproj-Q4_K_M.gguf": b"x", "README.md": b""})
    with pytest.raises(Corrupt, match="GGUF"):  # these are no real ones; what matters is which was fetched
        run(bench, f"hf.co/org/gguf{tag}")
    assert set(hub.sent) == {asked}


def test_a_quantization_that_is_not_there_lists_those_that_are(bench: Bench, hub: FakeHub) -> None:
    hub.repos["org/gguf"] = Repo({"a.Q8_0.gguf": b"", "b.Q4_0-00001-of-00002.gguf": b""})
    for tag in ("Q2_K", "Q4_0"):
        with pytest.raises(NotFound, match="no single GGUF file") as caught:
            run(bench, f"hf.co/org/gguf:{tag}")
        assert "a.Q8_0.gguf" in (caught.value.hint or "")


def test_create_from_a_repository_fetches_it(bench: Bench, hub: FakeHub, content: dict[str, bytes]) -> None:
    bench.create("mine", Recipe(from_=NAME, system="Be brief."))
    assert bench.registry.resolve("mine").system == "Be brief."
    assert [e.name for e in bench.registry.list()] == ["mine:latest"]
    hub.sent.clear()
    bench.create("other", Recipe(from_=NAME))
    assert hub.sent == Counter()


def test_an_unknown_name_says_where_to_look(bench: Bench) -> None:
    with pytest.raises(NotFound) as caught:
        run(bench, "no-such-model")
    assert caught.value.message == "pull model manifest: file does not exist"
    assert " smollm2," in (caught.value.hint or "")
    assert "hf.co/ORG/no-such-model" in (caught.value.hint or "")
