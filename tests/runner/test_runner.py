"""The runner as the daemon sees it: a child on a socket pair."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from mlxo.core import process, wire
from mlxo.core.types import Failed, Finished, Started, TextDelta
from tests import models
from tests.runner.child import Child, ask, child

FRANCE = "What is the capital of France?"
PARIS = "The capital of France is Paris."


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Child]:
    with child(tmp_path_factory.mktemp("runner") / "log") as one:
        one.load(models.QWEN3)
        ready = one.ready()
        assert isinstance(ready, wire.Ready), ready
        assert ready.context == 4096
        assert ready.load_ns > 0
        assert ready.stats.active_bytes > 500_000
        yield one


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Child]:
    with child(tmp_path / "log") as one:
        yield one


def text(events: list[object]) -> str:
    return "".join(e.text for e in events if isinstance(e, TextDelta))


def test_streams_an_answer(loaded: Child) -> None:
    loaded.send(ask("a", FRANCE))
    events = loaded.answer("a")
    assert isinstance(events[0], Started)
    assert text([*events]) == PARIS
    assert len([e for e in events if isinstance(e, TextDelta)]) > 3


def test_many_at_once_in_one_write(loaded: Child) -> None:
    questions = list(models.ANSWERS)[:9]
    loaded.send(*(ask(f"m{i}", q) for i, q in enumerate(questions)))
    got: dict[str, str] = {}
    ended = 0
    while ended < len(questions):
        frame = loaded.next()
        assert isinstance(frame, wire.Emit)
        assert not isinstance(frame.event, Failed), frame
        if isinstance(frame.event, TextDelta):
            got[frame.id] = got.get(frame.id, "") + frame.event.text
        ended += isinstance(frame.event, Finished)
    assert [got[f"m{i}"] for i in range(9)] == [models.ANSWERS[q] for q in questions]


def test_cancel_frees_the_row(loaded: Child) -> None:
    loaded.send(ask("forever", models.FOREVER))
    loaded.until(lambda f: isinstance(f, wire.Emit) and isinstance(f.event, TextDelta))
    loaded.send(wire.Cancel(id="forever"))
    last = loaded.answer("forever")[-1]
    assert isinstance(last, Failed)
    assert last.code == "cancelled"
    loaded.send(wire.Ping())
    (*_, stats) = loaded.until(lambda f: isinstance(f, wire.Stats))
    assert isinstance(stats, wire.Stats)
    assert (stats.stats.rows, stats.stats.waiting) == (0, 0)


def test_ping_is_answered_between_two_steps(loaded: Child) -> None:
    loaded.send(ask("busy", models.FOREVER))
    loaded.until(lambda f: isinstance(f, wire.Emit) and isinstance(f.event, TextDelta))
    loaded.send(wire.Ping())
    (*_, stats) = loaded.until(lambda f: isinstance(f, wire.Stats))
    assert isinstance(stats, wire.Stats)
    assert stats.stats.rows == 1
    loaded.send(wire.Cancel(id="busy"))
    loaded.answer("busy")


def test_a_busy_engine_says_that_it_moves(loaded: Child) -> None:
    """Unasked: the daemon tells by it that a runner without a word has to be replaced."""
    loaded.send(ask("busy", models.FOREVER))
    (*_, stats) = loaded.until(lambda f: isinstance(f, wire.Stats))
    assert isinstance(stats, wire.Stats)
    assert stats.stats.rows == 1
    loaded.send(wire.Cancel(id="busy"))
    loaded.answer("busy")


def test_a_spare_says_when_its_imports_are_done(fresh: Child) -> None:
    warm = fresh.next()
    assert isinstance(warm, wire.Warm)
    assert 10 << 20 < warm.resident < 1 << 30
    fresh.load(models.LLAMA)
    assert isinstance(fresh.next(), wire.Ready)


def test_a_spare_leaves_when_its_parent_does(fresh: Child) -> None:
    assert isinstance(fresh.next(), wire.Warm)
    fresh.end.close()
    assert fresh.wait() == 0


def test_a_refused_request_leaves_the_runner_alive(loaded: Child) -> None:
    loaded.send(ask("bad", "x" * 100_000, num_ctx=64, stop=("\x00",)))
    assert isinstance(loaded.answer("bad")[-1], Finished)  # truncated
    request = msgspec.structs.replace(ask("bad2", FRANCE).request, format={"type": "nope"})
    loaded.send(wire.Submit(request=request))
    last = loaded.answer("bad2")[-1]
    assert isinstance(last, Failed)
    assert last.code == "invalid_request"
    loaded.send(ask("good", FRANCE))
    assert text([*loaded.answer("good")]) == PARIS


def test_an_interrupt_of_the_terminal_is_not_for_the_runner(loaded: Child) -> None:
    loaded.process.send_signal(signal.SIGINT)
    loaded.send(ask("still", FRANCE))
    assert text([*loaded.answer("still")]) == PARIS


def test_the_log_holds_our_own_lines_alone(loaded: Child) -> None:
    """No warning of a library; but that a prompt was cut is said."""
    loaded.send(ask("cut", "word " * 400, num_ctx=64, num_predict=1))
    loaded.until(lambda f: isinstance(f, wire.Emit) and isinstance(f.event, Finished))
    lines = loaded.log.read_text().splitlines()
    assert all(" runner I mlxo." in line for line in lines), lines
    assert any("was cut to" in line for line in lines)


def test_open_files_stay_as_allowed(loaded: Child) -> None:
    """Importing mlx_lm lowers RLIMIT_NOFILE unless it is kept from that."""
    if not Path("/proc/self/limits").exists():
        pytest.skip("no /proc")

    def limit(pid: int) -> list[str]:
        lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
        return next(line for line in lines if line.startswith("Max open files")).split()[3:5]

    assert limit(loaded.process.pid) == limit(os.getpid())


def test_shutdown(fresh: Child) -> None:
    fresh.load(models.LLAMA)
    assert isinstance(fresh.ready(), wire.Ready)
    fresh.send(ask("a", FRANCE), wire.Shutdown())
    assert fresh.wait() == 0


def test_the_parent_goes_while_it_writes(fresh: Child) -> None:
    fresh.load(models.QWEN3)
    fresh.send(ask("a", models.FOREVER))
    fresh.until(lambda f: isinstance(f, wire.Emit) and isinstance(f.event, TextDelta))
    fresh.end.close()
    start = time.monotonic()
    assert fresh.wait() == 0
    assert time.monotonic() - start < 5


def test_the_parent_goes_while_it_imports(fresh: Child) -> None:
    fresh.load(models.QWEN3)
    fresh.end.close()
    assert fresh.wait() == 0


def test_a_killed_runner_closes_the_pipe(fresh: Child) -> None:
    fresh.load(models.QWEN3)
    fresh.send(ask("a", models.FOREVER))
    fresh.until(lambda f: isinstance(f, wire.Emit) and isinstance(f.event, TextDelta))
    fresh.process.kill()
    assert fresh.wait() == -signal.SIGKILL
    while fresh.end.recv(1 << 16):
        pass


def spoil(folder: Path, how: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    if how == "no such architecture":
        config["model_type"] = "perceptron"
    elif how == "a shape that is another":
        config["hidden_size"] = 128
    elif how == "more layers than tensors":
        config["num_hidden_layers"] = 5
    elif how == "code of its own":
        config["model_file"] = "evil.py"
        (folder / "evil.py").write_text("raise SystemExit(7)")
    (folder / "config.json").write_text(json.dumps(config))
    if how == "no config":
        (folder / "config.json").unlink()
    elif how == "no weights":
        (folder / "model.safetensors").unlink()
    elif how == "cut weights":
        with (folder / "model.safetensors").open("r+b") as f:
            f.truncate(200_000)
    elif how == "broken tokenizer":
        (folder / "tokenizer.json").write_text("{")


HOW = {
    "no such architecture": "perceptron not supported",
    "a shape that is another": "shape",
    "more layers than tensors": "Missing",
    "code of its own": "custom module",
    "no config": "no config.json",
    "no weights": "No safetensors",
    "cut weights": "cannot be loaded",
    "broken tokenizer": "tokenizer.json",
}


@pytest.mark.parametrize("how", ["no such architecture", "cut weights"])
def test_a_failed_load_is_one_sentence(fresh: Child, tmp_path: Path, how: str) -> None:
    """The other ways to fail are tested without a process, in tests/engine/test_load.py."""
    folder = tmp_path / "model"
    shutil.copytree(models.QWEN3, folder)
    spoil(folder, how)
    fresh.load(folder)
    fatal = fresh.ready()
    assert isinstance(fatal, wire.Fatal)
    assert fatal.code == "load_failed"
    assert HOW[how] in fatal.message
    assert "\n" not in fatal.message
    assert fresh.wait() == 1
    assert "Traceback" not in fresh.log.read_text()


def test_without_a_daemon_it_says_what_it_is() -> None:
    for words in ((), ("nonsense",), ("99",)):
        done = subprocess.run(process.command("_runner", *words), capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert done.stderr.startswith("Error: _runner is started by the server")


def test_garbage_on_the_pipe_ends_it(fresh: Child) -> None:
    fresh.end.sendall(b"\x00\x00\x00\x05hello")
    assert fresh.wait() == 1
    assert "no frame" in fresh.log.read_text()
