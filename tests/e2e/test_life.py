"""One daemon, tiny real models: create, run, list, remove; deaths of every process."""

from __future__ import annotations

import http.client
import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import Mlxo
from tests.models import QWEN3

PARIS = "What is the capital of France?"
FOREVER = "Repeat the word banana forever."


def modelfile(folder: Path, *lines: str) -> Path:
    path = folder / "Modelfile"
    path.write_text("\n".join([f"FROM {QWEN3}", "PARAMETER temperature 0", *lines]) + "\n")
    return path


@pytest.fixture(scope="module")
def tiny(shared: Mlxo, tmp_path_factory: pytest.TempPathFactory) -> Mlxo:
    """The shared daemon with the model `tiny` in its registry."""
    shared("create", "tiny", "-f", str(modelfile(tmp_path_factory.mktemp("tiny"))))
    return shared


def lines(mlxo: Mlxo, path: str, body: object) -> Iterator[dict[str, object]]:
    """The NDJSON lines of a streamed answer, as they come."""
    link = http.client.HTTPConnection("127.0.0.1", mlxo.port, timeout=60)
    try:
        link.request("POST", path, json.dumps(body))
        answer = link.getresponse()
        assert answer.status == 200, answer.read()
        for line in answer:
            yield json.loads(line)
    finally:
        link.close()


def runner_pids(mlxo: Mlxo) -> list[int]:
    """Children of this test's daemon that hold a model."""
    daemon = json.loads((mlxo.home / "daemon.json").read_text())["pid"]
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            words = (stat.parent / "cmdline").read_bytes()
        except OSError:
            continue
        if parent == daemon and b"_runner" in words:
            found.append(int(stat.parent.name))
    return found


def test_words_stdin_and_both_reach_the_model(tiny: Mlxo) -> None:
    assert tiny("run", "tiny", PARIS, "--think=false").stdout.strip() == "The capital of France is Paris."
    assert (
        tiny("run", "tiny", "--think=false", stdin=PARIS).stdout.strip() == "The capital of France is Paris."
    )
    both = tiny("run", "tiny", "--think=false", "of France?", stdin="What is the capital")
    assert both.stdout.strip() == "The capital of France is Paris."


def test_thinking_is_shown_apart_from_the_answer(tiny: Mlxo) -> None:
    shown = tiny("run", "tiny", PARIS).stdout
    assert (
        shown.index("Thinking...") < shown.index("...done thinking.") < shown.index("The capital of France")
    )
    assert "<think>" not in shown
    hidden = tiny("run", "tiny", PARIS, "--hidethinking").stdout
    assert hidden.strip() == "The capital of France is Paris."


def test_format_json_is_json(tiny: Mlxo) -> None:
    done = tiny("run", "tiny", "Answer in JSON: name and age of Ada.", "--format", "json", "--think=false")
    assert isinstance(json.loads(done.stdout), dict)


def test_ps_shows_what_is_loaded_and_stop_unloads_it(tiny: Mlxo) -> None:
    tiny("run", "tiny", PARIS, "--keepalive", "1h")
    (row,) = json.loads(tiny("ps", "--json").stdout)
    assert row["name"] == "tiny:latest"
    assert "tiny:latest" in tiny("ps").stdout
    tiny("stop", "tiny")
    assert json.loads(tiny("ps", "--json").stdout) == []
    assert runner_pids(tiny) == []


def test_show_modelfile_makes_the_same_model_again(tiny: Mlxo, tmp_path: Path) -> None:
    extra = (
        "SYSTEM Be brief.",
        'PARAMETER stop "###"',
        "REQUIRES 0.14.0",
        "KEEP_ALIVE 10m",
        "MESSAGE user hello",
    )
    tiny("create", "full", "-f", str(modelfile(tmp_path, *extra)))
    text = tiny("show", "full", "--modelfile").stdout
    (tmp_path / "Again").write_text(text)
    tiny("create", "again", "-f", str(tmp_path / "Again"))
    assert tiny("show", "again", "--modelfile").stdout.replace("again", "full") == text
    for line in extra:
        assert line.split()[0] in text
    tiny("rm", "full", "again")
    assert {r["name"] for r in json.loads(tiny("list", "--json").stdout)} == {"tiny:latest"}


def test_a_killed_runner_is_an_error_line_and_the_next_request_reloads(tiny: Mlxo) -> None:
    body = {
        "model": "tiny",
        "prompt": FOREVER,
        "think": False,
        "options": {"num_predict": 100000, "num_ctx": 4096},
    }
    started = threading.Barrier(4)
    endings: list[dict[str, object]] = []

    def client() -> None:
        last: dict[str, object] = {}
        for i, line in enumerate(lines(tiny, "/api/generate", body)):
            last = line
            if i == 3:
                started.wait(60)
        endings.append(last)

    threads = [threading.Thread(target=client) for _ in range(3)]
    for thread in threads:
        thread.start()
    started.wait(60)
    (pid,) = runner_pids(tiny)
    os.kill(pid, signal.SIGKILL)
    for thread in threads:
        thread.join(1.0)
        assert not thread.is_alive(), "a client was not told within a second"
    assert all("SIGKILL" in str(end.get("error")) for end in endings), endings
    assert len(endings) == 3
    assert tiny("run", "tiny", PARIS, "--think=false").stdout.strip() == "The capital of France is Paris."


def test_a_client_that_leaves_frees_its_row(tiny: Mlxo) -> None:
    body = {"model": "tiny", "prompt": FOREVER, "think": False, "options": {"num_predict": 100000}}
    stream = lines(tiny, "/api/generate", body)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    # keep_alive 0 unloads as soon as nobody uses the model: it only happens if the row above was given up
    tiny("stop", "tiny")
    assert runner_pids(tiny) == []


def test_two_clients_that_start_at_once_get_one_daemon(mlxo: Mlxo) -> None:
    both = [mlxo.start("list") for _ in range(2)]
    for process in both:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert out.startswith(b"NAME")
    log = (mlxo.home / "logs" / "daemon.log").read_text()
    assert log.count("listening") == 1, log


def test_the_daemon_is_small_and_never_maps_mlx(tiny: Mlxo) -> None:
    tiny("stop", "tiny", ok=False)
    daemon = json.loads((tiny.home / "daemon.json").read_text())["pid"]
    status = Path(f"/proc/{daemon}/status").read_text()
    (rss,) = (int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    assert rss < 90 * 1024
    assert "libmlx" not in Path(f"/proc/{daemon}/maps").read_text()


def test_a_killed_daemon_takes_its_runners_along_and_the_next_verb_starts_another(
    mlxo: Mlxo, tmp_path: Path
) -> None:
    mlxo("create", "tiny", "-f", str(modelfile(tmp_path)))
    mlxo("run", "tiny", PARIS, "--keepalive", "1h")
    (pid,) = runner_pids(mlxo)
    runner = os.pidfd_open(pid)
    os.kill(json.loads((mlxo.home / "daemon.json").read_text())["pid"], signal.SIGKILL)
    import select

    assert select.select([runner], [], [], 5)[0], "the runner outlived its daemon"
    os.close(runner)
    assert mlxo("run", "tiny", PARIS, "--think=false").stdout.strip() == "The capital of France is Paris."
