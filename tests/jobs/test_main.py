"""`mlxo _job` as a process: its lines, its errors, and that it does not outlive its parent."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mlxo.core.process import command
from tests.jobs.ggufs import BPE_TOKENS, Shape, model_file, weights

SHAPE = Shape(layers=1)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    model_file(tmp_path / "source", "qwen3", weights("qwen3", SHAPE, len(BPE_TOKENS)), SHAPE, default="F16")
    return tmp_path / "source"


def start(job: str = "convert", **options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command("_job", job), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
    )


def finish(process: subprocess.Popen[bytes], line: bytes) -> tuple[int, list[dict[str, Any]], str]:
    """Exit code, the JSON lines and the log. Standard input stays open until the child has ended."""
    assert process.stdin
    assert process.stdout
    assert process.stderr
    with process:
        process.stdin.write(line + b"\n")
        process.stdin.flush()
        lines = [json.loads(raw) for raw in process.stdout]
        log = process.stderr.read().decode()
        return process.wait(60), lines, log


def spec(source: Path, out: Path, **more: Any) -> bytes:
    return json.dumps({"source": str(source), "out": str(out), **more}).encode()


def test_progress_and_result(source: Path, tmp_path: Path) -> None:
    code, lines, log = finish(start(), spec(source, tmp_path / "out"))
    assert (code, log) == (0, "")
    assert all(line["status"] == "converting weights" for line in lines)
    assert lines[-1]["completed"] == lines[-1]["total"] > 0
    assert (tmp_path / "out" / "model.safetensors").exists()
    assert list((tmp_path / "out").glob("*.part")) == []


def test_what_libraries_print_stays_out_of_the_protocol(source: Path, tmp_path: Path) -> None:
    mode = {"mode": "affine", "bits": 4, "group_size": 32}
    code, lines, log = finish(start(), spec(source, tmp_path / "out", quantize=mode))
    assert code == 0, log
    assert "[INFO] Quantized" in log, "mlx-lm prints it"
    assert lines[-1]["status"] == "quantizing"


def error_of(process: subprocess.Popen[bytes], line: bytes) -> dict[str, Any]:
    code, lines, log = finish(process, line)
    assert code == 1
    assert "Traceback" not in log
    (failure,) = [found for found in lines if "error" in found]
    assert failure == lines[-1]
    return failure


def test_an_error_is_the_last_line(source: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    failure = error_of(start(), spec(tmp_path / "text", tmp_path / "out"))
    assert failure == {"error": "this is not a GGUF file", "code": "corrupt", "hint": None}
    assert error_of(start(), b"{")["code"] == "invalid_request"
    assert (
        error_of(start(), spec(source, tmp_path / "out", quantize={"bits": "x"}))["code"] == "invalid_request"
    )
    assert "no job 'nonsense'" in error_of(start("nonsense"), b"{}")["error"]
    occupied = error_of(start(), spec(source, tmp_path / "text"))
    assert str(tmp_path / "text") in occupied["error"]


def test_a_full_disk_is_a_full_disk(source: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    failure = error_of(start(preexec_fn=limit), spec(source, tmp_path / "out"))
    assert failure["code"] == "disk_full"
    assert "mlxo gc" in failure["hint"]
    assert not (tmp_path / "out" / "model.safetensors").exists()
    assert list((tmp_path / "out").glob("*.part")) == []


def test_it_ends_with_its_parent(tmp_path: Path) -> None:
    """The source is a pipe that nobody writes: without the watcher the job would wait for ever."""
    os.mkfifo(tmp_path / "pipe")
    with start() as process:
        assert process.stdin
        process.stdin.write(spec(tmp_path / "pipe", tmp_path / "out") + b"\n")
        process.stdin.close()
        try:
            assert process.wait(30) == 1
        finally:
            process.kill()


def test_nobody_reads_its_output(source: Path, tmp_path: Path) -> None:
    process = start()
    assert process.stdout
    process.stdout.close()
    with process:
        assert process.stdin
        process.stdin.write(spec(source, tmp_path / "out") + b"\n")
        process.stdin.flush()
        assert process.wait(30) == 1
        assert process.stderr
        assert process.stderr.read() == b""


def test_importing_a_gguf_needs_neither_mlx_nor_transformers(source: Path, tmp_path: Path) -> None:
    """The first command of the README runs this: it must not wait for imports."""
    code = """
import sys
from mlxo.jobs.convert import Spec, convert
convert(Spec(source=sys.argv[1], out=sys.argv[2]), lambda *_: None)
print([name for name in ("mlx", "mlx_lm", "transformers", "tokenizers") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(source), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"
