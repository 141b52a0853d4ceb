from __future__ import annotations

import contextlib
import json
import socket
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Mlxo
from tests.fakes.daemon import FakeDaemon, Reply

DIGEST = "ab" * 32


def row(name: str, **fields: Any) -> dict[str, Any]:
    two_days_ago = (datetime.now(UTC) - timedelta(days=2, minutes=5)).isoformat()
    return {
        "name": name,
        "model": name,
        "digest": DIGEST,
        "size": 4_683_087_332,
        "modified_at": two_days_ago,
        **fields,
    }


def loaded(name: str, **fields: Any) -> dict[str, Any]:
    soon = (datetime.now(UTC) + timedelta(minutes=4, seconds=30)).isoformat()
    return row(name, size_vram=0, context_length=4096, expires_at=soon, backend="cpu", **fields)


def test_list_prints_the_bytes_that_scripts_parse(mlxo: Mlxo, fake: FakeDaemon) -> None:
    fake.on("/api/tags", Reply(body={"models": [row("qwen3:4b"), row("a:latest", size=2_000_000_000)]}))
    done = mlxo("list")
    assert (done.code, done.err) == (0, "")
    assert done.out == (
        b"NAME        ID              SIZE      MODIFIED      \n"
        b"qwen3:4b    abababababab    4.7 GB    2 days ago    \n"
        b"a:latest    abababababab    2 GB      2 days ago    \n"
    )


def test_list_keeps_the_names_that_begin_with_a_prefix_of_any_case(mlxo: Mlxo, fake: FakeDaemon) -> None:
    fake.on("/api/tags", Reply(body={"models": [row("Qwen3:4b"), row("llama:1b")]}))
    names = [m["name"] for m in json.loads(mlxo("list", "qWEN", "--json").out)]
    assert names == ["Qwen3:4b"]


def test_list_without_models_has_its_header(mlxo: Mlxo, fake: FakeDaemon) -> None:
    fake.on("/api/tags", Reply(body={"models": []}))
    assert mlxo("list").out == b"NAME    ID    SIZE    MODIFIED    \n"


def test_ps(mlxo: Mlxo, fake: FakeDaemon) -> None:
    fake.on("/api/ps", Reply(body={"models": [loaded("a:latest"), loaded("B:latest")]}))
    done = mlxo("ps", "a")
    assert done.out == (
        b"NAME        ID              SIZE      PROCESSOR    CONTEXT    UNTIL                 \n"
        b"a:latest    abababababab    4.7 GB    100% CPU     4096       4 minutes from now    \n"
    )
    assert [m["backend"] for m in json.loads(mlxo("ps", "--json").out)] == ["cpu", "cpu"]


def test_cp(mlxo: Mlxo, fake: FakeDaemon) -> None:
    fake.on("/api/copy", Reply())
    assert mlxo("cp", "a", "b").out == b"copied 'a' to 'b'\n"
    assert fake.calls("/api/copy") == [{"source": "a", "destination": "b"}]


def test_rm_unloads_before_it_deletes(mlxo: Mlxo, fake: FakeDaemon) -> None:
    fake.on("/api/generate", Reply(body={"done": True, "done_reason": "unload"}))
    fake.on("/api/delete", Reply())
    assert mlxo("rm", "a", "b").out == b"deleted 'a'\ndeleted 'b'\n"
    assert [(s.method, s.path, s.json["model"]) for s in fake.seen] == [
        ("POST", "/api/generate", "a"),
        ("DELETE", "/api/delete", "a"),
        ("POST", "/api/generate", "b"),
        ("DELETE", "/api/delete", "b"),
    ]
    assert fake.seen[0].json["keep_alive"] == 0


def test_rm_goes_on_past_a_model_that_is_not_there(mlxo: Mlxo, fake: FakeDaemon) -> None:
    missing = Reply(status=404, body={"error": "model 'x' not found"})
    fake.on("/api/generate", missing, Reply(body={"done": True}))
    fake.on("/api/delete", Reply())
    done = mlxo("rm", "x", "b")
    assert (done.code, done.out, done.err) == (
        1,
        b"deleted 'b'\n",
        "Error: model 'x' not found\nHint: see what is there: mlxo list\n",
    )


def test_stop_says_what_it_did_not_find(mlxo: Mlxo, fake: FakeDaemon) -> None:
    fake.on("/api/generate", Reply(status=404, body={"error": "model 'x' not found"}))
    done = mlxo("stop", "x")
    assert done.code == 1
    assert done.err.startswith('Error: couldn\'t find model "x" to stop\n')


def test_pull_prints_one_plain_line_a_status(mlxo: Mlxo, fake: FakeDaemon) -> None:
    layer: dict[str, Any] = {"status": "pulling 4f659a1e86d7", "digest": "sha256:4f", "total": 10}
    lines = [{"status": "pulling manifest"}, layer, {**layer, "completed": 5}, {"status": "success"}]
    fake.on("/api/pull", Reply(lines=lines))
    done = mlxo("pull", "m")
    assert (done.code, done.out) == (0, b"")
    assert done.err == "pulling manifest\npulling 4f659a1e86d7\nsuccess\n"


def test_an_error_in_the_stream_is_the_sentence(mlxo: Mlxo, fake: FakeDaemon) -> None:
    error: dict[str, Any] = {
        "error": "pull model manifest: file does not exist",
        "hint": "is the name right?",
    }
    fake.on("/api/pull", Reply(lines=[{"status": "pulling manifest"}, error]))
    done = mlxo("pull", "m")
    assert done.code == 1
    assert done.err == (
        "pulling manifest\nError: pull model manifest: file does not exist\nHint: is the name right?\n"
    )


def test_a_stream_without_its_last_line_is_an_error(mlxo: Mlxo, fake: FakeDaemon) -> None:
    fake.on("/api/pull", Reply(lines=[{"status": "pulling manifest"}], cut=True))
    done = mlxo("pull", "m")
    assert done.code == 1
    assert "Error: the server ended its answer early" in done.err


def test_error_and_hint_of_the_server_are_both_shown(mlxo: Mlxo, fake: FakeDaemon) -> None:
    fake.on("/api/tags", Reply(status=507, body={"error": "the disk is full", "hint": "free 2 GB"}))
    assert mlxo("list").err == "Error: the disk is full\nHint: free 2 GB\n"


def test_an_error_that_is_no_json_is_still_a_sentence(mlxo: Mlxo, fake: FakeDaemon) -> None:
    fake.on("/api/tags", Reply(status=500, body="oops"))
    assert mlxo("list").err == 'Error: the server answered with status 500: "oops"\n'


def test_verify(mlxo: Mlxo, fake: FakeDaemon) -> None:
    problem = {"model": "m:latest", "digest": "sha256:ab", "problem": "3 bytes are missing"}
    fake.on(
        "/api/verify",
        Reply(
            lines=[
                {"status": "verifying", "total": 2, "completed": 1},
                {"status": "success", "problems": [], "checked": 2},
            ]
        ),
        Reply(lines=[{"status": "success", "problems": [problem], "checked": 1}]),
    )
    assert mlxo("verify").out == b"checked 2 blobs: all good\n"
    done = mlxo("verify")
    assert done.code == 1
    assert done.out.startswith(b"m:latest sha256:ab: 3 bytes are missing\nchecked 1 blob: 1 problem\n")
    assert json.loads(mlxo("verify", "--json").out) == {"checked": 1, "problems": [problem]}


def test_gc_sends_its_grace_in_seconds(mlxo: Mlxo, fake: FakeDaemon) -> None:
    fake.on("/api/gc", Reply(body={"removed": 3, "freed": 1500}))
    assert mlxo("gc", "--grace", "30m").out == b"removed 3 files, 1.5 KB freed\n"
    assert fake.calls("/api/gc") == [{"grace": 1800}]


# ---------------------------------------------------------------- who is at the address


def test_a_real_ollama_on_the_port_is_named(mlxo: Mlxo, fake: FakeDaemon) -> None:
    fake.server = ""
    fake.on("/api/version", Reply(body={"version": "0.12.3"}))
    fake.on("/api/tags", Reply(body={"models": []}))
    done = mlxo("list")
    assert done.code == 1
    assert done.err == (
        f"Error: Ollama 0.12.3 holds {fake.address}, where mlxo's server should be\n"
        f"Hint: stop it, or give mlxo another address: MLXO_HOST=127.0.0.1:{fake.port + 1}\n"
    )


def test_another_web_server_on_the_port_is_named(mlxo: Mlxo, fake: FakeDaemon) -> None:
    fake.server = "nginx/1.25"
    done = mlxo("list")
    assert done.err.startswith(f"Error: another program (nginx/1.25) holds {fake.address}, where mlxo's")


def test_a_program_that_speaks_no_http(mlxo: Mlxo, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def banner() -> None:
            for _ in range(2):  # the probe, then the request
                connection, _address = listener.accept()
                with connection, contextlib.suppress(ConnectionResetError):  # it left without reading
                    connection.sendall(b"SSH-2.0-OpenSSH_9.7\r\n")
                    while connection.recv(4096):
                        pass

        thread = threading.Thread(target=banner)
        thread.start()
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        monkeypatch.setenv("MLXO_HOST", address)
        monkeypatch.delenv("MLXO_HOME")
        done = mlxo("list")
        thread.join()
    assert done.err.startswith(f"Error: the program that listens on {address} does not speak HTTP\n")


def test_a_remote_address_that_refuses_is_not_started(
    mlxo: Mlxo, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    monkeypatch.setenv("MLXO_HOST", "host.invalid:9")
    done = mlxo("list")
    assert done.code == 1
    assert done.err.startswith("Error: could not connect to the mlxo server on host.invalid:9")
    assert not home.exists()


def test_an_older_server_is_told_of_once(mlxo: Mlxo, fake: FakeDaemon) -> None:
    fake.server = "mlxo/0.0.1"
    fake.on("/api/generate", Reply(body={"done": True}))
    fake.on("/api/delete", Reply())
    done = mlxo("rm", "a")
    assert done.code == 0
    assert done.err.count("Warning: the server is mlxo 0.0.1") == 1
    assert "mlxo daemon restart" in done.err


def test_a_server_of_another_home_is_told_of(
    mlxo: Mlxo, fake: FakeDaemon, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake.on("/api/tags", Reply(body={"models": []}))
    monkeypatch.setenv("MLXO_HOME", str(tmp_path / "other"))
    done = mlxo("list")
    assert done.code == 0
    assert done.err.startswith(f"Warning: the server on {fake.address} was not started with MLXO_HOME=")
