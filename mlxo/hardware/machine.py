"""What `mlxo doctor` says about the machine: processor, cores, GPU and memory, found without importing mlx.

A Mac answers through sysctl(8) (keys of xnu's bsd/kern/kern_mib.c, `iogpu.` of the GPU's driver) and
system_profiler(8), Linux through /proc and nvidia-smi. A part that nothing is said about stays empty.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from mlxo.core.types import Frozen
from mlxo.hardware import detect

# Gigabytes (10**9 bytes) a second of unified memory, by Apple's specifications. A chip that is sold with two
# memory buses has two rows: the first holds up to that many GPU cores.
_BANDWIDTH: tuple[tuple[str, int | None, float], ...] = (
    ("M1", None, 68),
    ("M1 Pro", None, 200),
    ("M1 Max", None, 400),
    ("M1 Ultra", None, 800),
    ("M2", None, 100),
    ("M2 Pro", None, 200),
    ("M2 Max", None, 400),
    ("M2 Ultra", None, 800),
    ("M3", None, 100),
    ("M3 Pro", None, 150),
    ("M3 Max", 30, 300),
    ("M3 Max", None, 400),
    ("M3 Ultra", None, 819),
    ("M4", None, 120),
    ("M4 Pro", None, 273),
    ("M4 Max", 32, 410),
    ("M4 Max", None, 546),
    ("M5", None, 153),
    ("M5 Pro", None, 307),
    ("M5 Max", 32, 460),
    ("M5 Max", None, 614),
    ("M5 Ultra", None, 1200),
    ("A18 Pro", None, 60),
)
# Those that a matrix product on the CPU gains from, as /proc/cpuinfo of x86 and of ARM names them.
_FEATURES = "avx2 fma avx512f avx512_bf16 avx512_vnni amx_bf16 amx_int8 asimd asimdhp asimddp bf16 i8mm sve"
_PATIENCE = 20  # seconds; system_profiler asks every display


class Cores(Frozen, frozen=True, kw_only=True):
    """`kind` is the system's own word, such as performance or efficiency; of Linux, physical."""

    kind: str
    count: int


class Gpu(Frozen, frozen=True, kw_only=True):
    """`memory` is bytes of its own, None where it shares the machine's."""

    name: str
    cores: int | None = None
    memory: int | None = None


class Machine(Frozen, frozen=True, kw_only=True):
    """Sizes are bytes. `limit` is what this process may use of `memory`, less in a control group.

    Of a Mac alone: `generation` (4 of an M4), `wired_limit` (0 leaves it to the system), `bandwidth` in
    10**9 bytes a second, and `translated`, whether this process runs under Rosetta.
    """

    processor: str = ""
    generation: int | None = None
    cores: tuple[Cores, ...] = ()
    features: tuple[str, ...] = ()
    gpus: tuple[Gpu, ...] = ()
    memory: int
    limit: int
    wired_limit: int | None = None
    bandwidth: float | None = None
    translated: bool = False


def find() -> Machine:
    """This machine. On a Mac it may take a second or two."""
    if sys.platform == "darwin":
        keys = ("hw", "machdep.cpu", "iogpu", "sysctl.proc_translated")  # a Mac of Intel's lacks some
        return apple(
            _said("/usr/sbin/sysctl", *keys),
            _said("/usr/sbin/system_profiler", "-json", "SPDisplaysDataType"),
        )
    query = ("--query-gpu=name,memory.total", "--format=csv,noheader,nounits")
    return linux(Path("/"), _said("nvidia-smi", *query))


def _said(*command: str) -> str:
    """What a program of the system prints, whatever its exit code; nothing when it is not there."""
    try:
        return subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_PATIENCE, check=False
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def apple(sysctl: str, profiler: str) -> Machine:
    """Out of the lines of sysctl, `name: value`, and the JSON of system_profiler."""
    values = {name: value.strip() for name, _, value in (line.partition(":") for line in sysctl.splitlines())}
    chip = values.get("machdep.cpu.brand_string", "")
    gpus = _apple_gpus(profiler)
    generation = re.match(r"Apple M(\d+)\b", chip)
    memory = _number(values.get("hw.memsize")) or detect.total_memory()
    wired = _number(values.get("iogpu.wired_limit_mb"))
    return Machine(
        processor=chip,
        generation=int(generation[1]) if generation else None,
        cores=_levels(values),
        gpus=gpus,
        memory=memory,
        limit=memory,
        wired_limit=None if wired is None else wired << 20,
        bandwidth=bandwidth(chip, next((gpu.cores for gpu in gpus if gpu.cores), None)),
        translated=values.get("sysctl.proc_translated") == "1",
    )


def bandwidth(chip: str, gpu_cores: int | None) -> float | None:
    """10**9 bytes a second; the lesser of two where the number of GPU cores is not known. None: no row."""
    name = chip.removeprefix("Apple ")
    return next(
        (
            speed
            for row, most, speed in _BANDWIDTH
            if row == name and (most is None or (gpu_cores or 0) <= most)
        ),
        None,
    )


def _levels(values: dict[str, str]) -> tuple[Cores, ...]:
    """hw.perflevel0 is the fastest kind. M1 to M4 have Performance and Efficiency, M5 Pro and Max others."""
    levels = []
    for level in range(_number(values.get("hw.nperflevels")) or 0):
        prefix = f"hw.perflevel{level}"
        kind = values.get(f"{prefix}.name") or f"level {level}"
        levels.append(Cores(kind=kind.lower(), count=_number(values.get(f"{prefix}.physicalcpu")) or 0))
    if not levels and (count := _number(values.get("hw.physicalcpu"))):
        levels.append(Cores(kind="physical", count=count))
    return tuple(levels)


def _apple_gpus(profiler: str) -> tuple[Gpu, ...]:
    try:
        found: Any = json.loads(profiler)["SPDisplaysDataType"]
        return tuple(
            Gpu(name=str(gpu.get("sppci_model", "")), cores=_number(str(gpu.get("sppci_cores"))))
            for gpu in found
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return ()


def _number(text: str | None) -> int | None:
    return int(text) if text and re.fullmatch(r"\d{1,18}", text) else None


def linux(root: Path, smi: str) -> Machine:
    """Out of /proc and /sys under `root`, and nvidia-smi's lines `name, mebibytes`."""
    limit = detect.total_memory(root)
    info = {k.strip(): v.strip() for k, _, v in (s.partition(":") for s in _lines(root / "proc/cpuinfo"))}
    # The kernel names no ARM processor; the device tree names the board.
    processor = info.get("model name") or "".join(_lines(root / "proc/device-tree/model")).strip("\0 ")
    flags = (info.get("flags") or info.get("Features") or "").split()
    total = next((s.split()[1] for s in _lines(root / "proc/meminfo") if s.startswith("MemTotal:")), None)
    return Machine(
        processor=processor or platform.machine(),
        cores=(
            Cores(kind="physical", count=detect.cpu_count(root)),
            Cores(kind="logical", count=os.cpu_count() or 1),
        ),
        features=tuple(f for f in _FEATURES.split() if f in flags),
        gpus=tuple(_nvidia(line) for line in smi.splitlines() if "," in line),
        memory=max(limit, (_number(total) or 0) << 10),
        limit=limit,
    )


def _nvidia(line: str) -> Gpu:
    name, _, memory = line.rpartition(",")
    mebibytes = _number(memory.strip())  # "[N/A]" where it shares the machine's
    return Gpu(name=name.strip(), memory=None if mebibytes is None else mebibytes << 20)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
