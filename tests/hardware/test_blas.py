"""The fast BLAS, for real: compiled, preloaded into a child, and compared with numpy."""

from __future__ import annotations

import json
import logging
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from mlxo.core.errors import InvalidRequest
from mlxo.hardware import blas, detect

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or detect.backend() != "cpu",
    reason="a fast BLAS is a matter of Linux without a GPU",
)
needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")

# Products of every path of the shim: one to three rows (gemv), more (gemm), shared between threads by
# columns and by rows, strided operands, batches. Prints the largest error and what is mapped.
CHILD = """
import json, os, sys
import mlx.core as mx, numpy as np
rng = np.random.default_rng(0)
worst, ratio = 0.0, []
for m, k, n in [(1, 64, 8), (1, 700, 1000), (2, 576, 1537), (3, 576, 1536), (4, 577, 1536), (16, 576, 4099),
                (700, 300, 65), (4099, 70, 33), (128, 128, 128)]:
    a, b = (rng.standard_normal(s, dtype=np.float32) for s in ((m, k), (n, k)))
    want = a.astype(np.float64) @ b.T.astype(np.float64)
    for got in (mx.array(a) @ mx.array(b).T, mx.array(a) @ mx.array(np.ascontiguousarray(b.T)),
                mx.array(np.ascontiguousarray(a.T)).T @ mx.array(b).T,
                mx.addmm(mx.zeros((m, n)), mx.array(a), mx.array(b).T)):
        worst = max(worst, float(np.abs(np.array(got) - want).max()))
a, b = rng.standard_normal((6, 5, 40), dtype=np.float32), rng.standard_normal((6, 40, 90), dtype=np.float32)
worst = max(worst, float(np.abs(np.array(mx.array(a) @ mx.array(b)) - a @ b).max()))
maps = open("/proc/self/maps").read()
print(json.dumps({"worst": worst, "shim": "/cache/sgemm-" in maps, "preload": os.environ.get("LD_PRELOAD"),
                  "threads": os.environ.get("OPENBLAS_NUM_THREADS"),
                  "tasks": len(os.listdir("/proc/self/task"))}))
"""


def run_child(added: dict[str, str], code: str = CHILD) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **added}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, object] = json.loads(done.stdout)
    return result


@needs_compiler
@pytest.mark.parametrize("threads", ["1", "2", "5"])
def test_the_shim_takes_effect_and_multiplies_right(home: Path, threads: str) -> None:
    base = {**os.environ, "OPENBLAS_NUM_THREADS": threads}
    added = blas.environment("auto", home, base)
    assert set(added) == {"LD_PRELOAD"}
    alone = run_child({**base, **added, "OPENBLAS_NUM_THREADS": "1"})
    seen = run_child({**base, **added})
    assert seen["shim"]
    assert isinstance(seen["worst"], float)
    assert seen["worst"] < 1e-4
    assert seen["threads"] == "1", "OpenBLAS must not start threads of its own"
    assert seen["tasks"] == int(str(alone["tasks"])) + int(threads) - 1


@needs_compiler
def test_children_of_a_runner_get_no_preload(home: Path) -> None:
    """mx.compile starts g++; it shall not pay for a BLAS. What the user preloads stays."""
    show = "import json, os, subprocess; print(json.dumps({'preload': os.environ.get('LD_PRELOAD')}))"
    added = blas.environment("auto", home, {**os.environ, "LD_PRELOAD": "libm.so.6"})
    assert added["LD_PRELOAD"].endswith(":libm.so.6")
    assert run_child(added, show) == {"preload": "libm.so.6"}
    assert run_child(blas.environment("auto", home, os.environ), show) == {"preload": None}


@needs_compiler
def test_it_is_faster_than_the_bundled_blas(home: Path) -> None:
    code = """
import json, time
import mlx.core as mx
a, b = mx.random.normal((128, 512)), mx.random.normal((512, 512)); mx.eval(a @ b)
best = 9.0
for _ in range(8):
    t = time.perf_counter(); mx.eval(a @ b); best = min(best, time.perf_counter() - t)
print(json.dumps({"gflops": 2 * 128 * 512 * 512 / best / 1e9}))
"""
    slow, fast = run_child({}, code), run_child(blas.environment("auto", home, os.environ), code)
    assert float(str(fast["gflops"])) > 3 * float(str(slow["gflops"]))


@needs_compiler
def test_a_warm_cache_compiles_nothing_and_imports_nothing(home: Path) -> None:
    first = blas.environment("auto", home, os.environ)
    shim = Path(first["LD_PRELOAD"])
    made = shim.stat().st_mtime_ns
    assert [p.name for p in shim.parent.iterdir()] == [shim.name], "no half-made files stay"
    assert blas.environment("auto", home, {**os.environ, "PATH": "/nonexistent"}) == first
    assert shim.stat().st_mtime_ns == made
    code = (
        "import sys, os, json; from pathlib import Path; from mlxo.hardware import blas\n"
        f"found = blas.environment('auto', Path({str(home)!r}), os.environ)\n"
        "heavy = [m for m in ('numpy', 'mlx', 'ctypes') if m in sys.modules]\n"
        "print(json.dumps({'found': found, 'heavy': heavy}))"
    )
    assert run_child({}, code) == {"found": first, "heavy": []}


@needs_compiler
def test_two_builders_at_once_agree(home: Path) -> None:
    code = (
        "import os; from pathlib import Path; from mlxo.hardware import blas\n"
        f"print(blas.environment('auto', Path({str(home)!r}), os.environ)['LD_PRELOAD'])"
    )
    both = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    found = {child.communicate()[0].strip() for child in both}
    assert len(found) == 1
    assert Path(found.pop()).is_file()


def test_off_and_other_systems_change_nothing(home: Path) -> None:
    assert blas.environment("off", home, os.environ) == {}
    assert blas.environment("auto", home, os.environ, system="darwin") == {}
    assert not home.exists()


def test_a_library_by_path(home: Path, tmp_path: Path) -> None:
    library = tmp_path / "libmkl_rt.so"
    library.write_bytes(b"")
    added = blas.environment(str(library), home, {"OPENBLAS_NUM_THREADS": "3"})
    assert added == {"LD_PRELOAD": str(library)}
    with pytest.raises(InvalidRequest, match="is no file"):
        blas.environment(str(tmp_path / "absent.so"), home, {})


def test_a_path_that_cannot_be_preloaded_is_said(
    home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    library = tmp_path / "my blas.so"
    library.write_bytes(b"")
    assert blas.environment(str(library), home, {}) == {}
    assert "without spaces" in caplog.text


def expect_fallback(added: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    """The system's OpenBLAS where there is one, else nothing and a hint."""
    if added:
        assert added["LD_PRELOAD"].endswith("libopenblas.so.0")
    else:
        assert "apt-get install" in caplog.text


def test_without_a_compiler_the_next_best(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    expect_fallback(blas.environment("auto", home, {"PATH": "/nonexistent"}), caplog)
    assert "no C compiler" in caplog.text


@pytest.mark.parametrize(
    "script", ["echo cannot find -lc >&2; exit 1", 'while [ "$1" != -o ]; do shift; done; echo junk > "$2"']
)
def test_a_compiler_that_fails_or_lies_leaves_nothing(
    home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, script: str
) -> None:
    compiler = tmp_path / "bin" / "cc"
    compiler.parent.mkdir()
    compiler.write_text(f"#!/bin/sh\n{script}\n")
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    expect_fallback(blas.environment("auto", home, {"PATH": str(compiler.parent)}), caplog)
    assert "cannot be built" in caplog.text
    assert list((home / "cache").iterdir()) == []


@needs_compiler
def test_a_home_that_cannot_be_written_is_no_crash(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    home.parent.mkdir(parents=True, exist_ok=True)
    home.write_text("a file where the folder should be")
    expect_fallback(blas.environment("auto", home, os.environ), caplog)
    assert "cannot be built" in caplog.text
