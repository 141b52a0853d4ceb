"""The bash completion in a real bash: what it offers, and what readline makes of a name with a colon."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "completions" / "mlxo.bash"
BASH = shutil.which("bash") or "bash"
MODELS = ("qwen3:4b", "qwen3:8b", "smollm2:135m", "hf.co/org/Repo.X:latest")

# Stands in for mlxo on the PATH: two verbs as the real one answers them; the rest shows its words.
FAKE = r"""#!/bin/sh
case "$1 $2" in
    "daemon status") exit ${DAEMON_STATUS:-0} ;;
    "list ") printf 'NAME    ID    \n'; printf '%s    0123    \n' MODELS '$(touch hacked)' ;;
    *) echo "ran[$*]" ;;
esac
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    program = tmp_path / "bin" / "mlxo"
    program.parent.mkdir()
    program.write_text(FAKE.replace("MODELS", " ".join(MODELS)))
    program.chmod(0o755)
    return {"PATH": f"{program.parent}:{os.environ['PATH']}", "TERM": "dumb", "HOME": str(tmp_path)}


def offered(line: str, environment: dict[str, str], breaks: str = " \t\n\"'><=;|&(:") -> list[str]:
    code = f'source "{SCRIPT}"; COMP_WORDBREAKS=$BREAKS; _mlxo mlxo; printf "%s\\n" "${{COMPREPLY[@]}}"'
    done = subprocess.run(
        [BASH, "--norc", "-uc", code],
        env={
            **environment,
            "COMP_LINE": line,
            "COMP_POINT": str(len(line)),
            "BREAKS": breaks,
        },
        cwd=environment["HOME"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("mlxo mod", ["modelfile"]),
        ("mlxo p", ["ps", "pull"]),
        ("mlxo daemon st", ["status", "stop"]),
        ("mlxo modelfile ", ["lint"]),
        ("mlxo modelfile lint ", []),
        ("mlxo run sm", ["smollm2:135m"]),
        ("mlxo run qwen3:", ["4b", "8b"]),
        ("mlxo run qwen3:4", ["4b"]),
        ("mlxo rm smollm2:135m qwen3:8", ["8b"]),
        ("mlxo  cp   hf.co/org/R", ["hf.co/org/Repo.X:latest"]),
        ("mlxo show hf.co/org/Repo.X:l", ["latest"]),
        ("mlxo show $", []),
        ("mlxo serve ", []),
        ("mlxo nothing ", []),
    ],
)
def test_what_is_offered(line: str, words: list[str], environment: dict[str, str]) -> None:
    assert offered(line, environment) == words


def test_a_colon_that_breaks_no_words_keeps_the_whole_name(environment: dict[str, str]) -> None:
    assert offered("mlxo run qwen3:4", environment, breaks=" \t\n") == ["qwen3:4b"]


def test_a_hidden_verb_is_not_offered(environment: dict[str, str]) -> None:
    words = offered("mlxo ", environment)
    assert "run" in words
    assert not [w for w in words if w.startswith("_")]


def test_a_tab_starts_no_server_and_runs_no_name(environment: dict[str, str]) -> None:
    assert offered("mlxo run ", {**environment, "DAEMON_STATUS": "1"}) == []
    assert sorted(offered("mlxo run ", environment)) == sorted(MODELS)
    assert not (Path(environment["HOME"]) / "hacked").exists()


def read_until(fd: int, mark: bytes) -> bytes:
    """What a terminal shows up to `mark`. Fails after 20 seconds."""
    shown, deadline = b"", time.monotonic() + 20
    while mark not in shown:
        ready, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, shown
        shown += os.read(fd, 4096)
    return shown


def test_a_name_with_a_colon_is_completed_in_place(environment: dict[str, str]) -> None:
    ours, theirs = pty.openpty()
    shell = subprocess.Popen(
        [BASH, "--norc", "--noprofile", "-i"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**environment, "PS1": "ready> ", "BASH_SILENCE_DEPRECATION_WARNING": "1"},
        start_new_session=True,
    )
    os.close(theirs)
    try:
        read_until(ours, b"ready> ")
        os.write(ours, f"source '{SCRIPT}'; echo load''ed\n".encode())
        read_until(ours, b"loaded\r\nready> ")
        os.write(ours, b"mlxo run qwen3:4\t\n")
        assert b"ran[run qwen3:4b]" in read_until(ours, b"]")
        os.write(ours, b"exit\n")
        assert shell.wait(20) == 0
    finally:
        shell.kill()
        shell.wait()
        os.close(ours)
