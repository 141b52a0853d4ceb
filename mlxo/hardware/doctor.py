"""What slows this machine down or is missing, each with the one command that mends it.

A check takes the facts and gives a Finding, or None when all is well. Facts are looked up once, by `look`.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from mlxo.core.settings import Settings
from mlxo.core.types import Frozen
from mlxo.hardware import blas, detect, machine
from mlxo.hardware.detect import Backend
from mlxo.hardware.machine import Machine

_FULL = 10 * 10**9  # bytes: less does not hold one model that people like
_WIRED_MOST = 0.9  # of a Mac's memory: above that the system itself starves, and freezes

# Package manager -> how it installs, its C++ compiler, its OpenBLAS.
_PACKAGES = {
    "apt-get": ("sudo apt-get install", "g++", "libopenblas0-pthread"),
    "dnf": ("sudo dnf install", "gcc-c++", "openblas-threads"),
    "pacman": ("sudo pacman -S", "gcc", "openblas"),
}


class Finding(Frozen, frozen=True, kw_only=True):
    """`about` is a word for scripts, `problem` a sentence, `command` what to type."""

    about: str
    problem: str
    command: str


class Facts(Frozen, frozen=True, kw_only=True):
    """`budget` is the bytes that models may take, `disk` the free bytes where models are kept.

    `blas` and `compiler` say whether a fast BLAS and a C++ compiler were found; `manager` is a key of
    the table of packages.
    """

    system: str
    machine: Machine
    backend: Backend
    budget: int
    home: Path
    disk: int
    blas: bool
    compiler: bool
    manager: str = "apt-get"


def look(settings: Settings) -> Facts:
    """The facts of this machine. On Linux it may compile the fast BLAS, as the first model would."""
    found = machine.find()
    backend = detect.backend()
    return Facts(
        system=sys.platform,
        machine=found,
        backend=backend,
        budget=settings.memory or detect.device_memory(backend) * 3 // 4,
        home=settings.home,
        disk=shutil.disk_usage(_existing(settings.home)).free,
        blas=sys.platform != "linux"
        or settings.blas != "auto"
        or blas.find(settings.home, os.environ) is not None,
        compiler=shutil.which("g++") is not None,
        manager=next((name for name in _PACKAGES if shutil.which(name)), "apt-get"),
    )


def _existing(path: Path) -> Path:
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def examine(facts: Facts) -> list[Finding]:
    return [finding for check in CHECKS if (finding := check(facts)) is not None]


def _rosetta(facts: Facts) -> Finding | None:
    if not facts.machine.translated:
        return None
    return Finding(
        about="python",
        problem="Python runs translated (Rosetta), where MLX has no GPU: call it from a shell that does not",
        command="arch -arm64 zsh",
    )


def _cuda(facts: Facts) -> Finding | None:
    if facts.system != "linux" or facts.backend == "cuda" or not facts.machine.gpus:
        return None
    return Finding(
        about="cuda",
        problem=f"MLX computes on the CPU: nothing uses the {facts.machine.gpus[0].name}",
        command=f"{sys.executable} -m pip install 'mlx[cuda12]'",
    )


def _blas(facts: Facts) -> Finding | None:
    if facts.system != "linux" or facts.backend != "cpu" or facts.blas:
        return None
    install, compiler, library = _PACKAGES[facts.manager]
    return Finding(
        about="blas",
        problem="only MLX's own reference BLAS is here: float32 models run 10 to 50 times slower",
        command=f"{install} {library if facts.compiler else compiler}",
    )


def _compiler(facts: Facts) -> Finding | None:
    if facts.system != "linux" or facts.backend != "cpu" or facts.compiler:
        return None
    install, compiler, _ = _PACKAGES[facts.manager]
    return Finding(
        about="compiler",
        problem="there is no g++: MLX cannot join operations into one, and takes them one by one",
        command=f"{install} {compiler}",
    )


def _wired(facts: Facts) -> Finding | None:
    """A limit that somebody set. 0, the system's own, leaves the GPU two thirds to three quarters."""
    wired, memory = facts.machine.wired_limit, facts.machine.memory
    if not wired:
        return None
    if wired > _WIRED_MOST * memory:
        return Finding(
            about="wired",
            problem=f"the GPU may wire {_gib(wired)} of {_gib(memory)}: a model may freeze the system",
            command="sudo sysctl iogpu.wired_limit_mb=0",
        )
    if wired < facts.budget:
        return Finding(
            about="wired",
            problem=f"the GPU may wire {_gib(wired)}, and models may take {_gib(facts.budget)}: "
            "what is above is slow or fails",
            command=f"sudo sysctl iogpu.wired_limit_mb={facts.budget >> 20}",
        )
    return None


def _memory(facts: Facts) -> Finding | None:
    limit = facts.machine.limit
    if facts.backend == "cuda" or facts.budget <= limit:
        return None
    return Finding(
        about="memory",
        problem=f"MLXO_MEMORY lets models take {_gib(facts.budget)}, and this machine has {_gib(limit)}",
        command="unset MLXO_MEMORY; mlxo daemon restart",
    )


def _disk(facts: Facts) -> Finding | None:
    if facts.disk >= _FULL:
        return None
    return Finding(
        about="disk",
        problem=f"{_gib(facts.disk)} are left on the disk of {facts.home}",
        command="mlxo gc; mlxo cache clear",
    )


def _gib(count: int) -> str:
    return f"{count / (1 << 30):.1f} GiB"


CHECKS: tuple[Callable[[Facts], Finding | None], ...] = (
    _rosetta,
    _cuda,
    _blas,
    _compiler,
    _wired,
    _memory,
    _disk,
)
