"""What machine this is: memory, processors and the MLX back end, found without importing mlx.

Limits of control groups (containers) count, version 1 and 2: files of the kernel's
Documentation/admin-guide/cgroup-v1 and cgroup-v2. `root` is where /proc, /sys and /dev are looked for.
"""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Literal

Backend = Literal["metal", "cuda", "cpu"]

_CUDA_WHEELS = ("mlx-cuda-12", "mlx-cuda-13")


def total_memory(root: Path = Path("/")) -> int:
    """Bytes this process may use: the machine's memory, or less where a control group says so."""
    if sys.platform == "darwin":
        out = subprocess.run(
            ["/usr/sbin/sysctl", "-n", "hw.memsize"], capture_output=True, text=True, check=True
        )
        return int(out.stdout)
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for folder in _groups(root, "memory"):
        # An unlimited group says "max" (v2) or a number near 2**63 (v1).
        limits += [
            int(text)
            for text in (_read(folder / "memory.max"), _read(folder / "memory.limit_in_bytes"))
            if text.isdigit() and int(text) > 0
        ]
    return min(limits)


def free_memory(root: Path = Path("/")) -> int:
    """Bytes that programs may still take without hurting those that run: what is cached counts as free."""
    if sys.platform == "darwin":
        # A per cent of the memory, as the kernel's own pressure warnings go by.
        per_cent = _ask("/usr/sbin/sysctl", "-n", "kern.memorystatus_level")
        return total_memory() * (100 if per_cent is None else per_cent) // 100
    free = []
    for line in _read(root / "proc/meminfo").splitlines():
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            free.append(int(rest.split()[0]) << 10)
    for folder in _groups(root, "memory"):
        for limit, used in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            most, now = _read(folder / limit), _read(folder / used)
            if most.isdigit() and now.isdigit() and int(most) > 0:
                free.append(max(0, int(most) - int(now) + _file_cache(folder)))
    return min(free, default=total_memory(root))


def _file_cache(group: Path) -> int:
    """Bytes of a control group that are cached files: its kernel lets go of them first."""
    for line in _read(group / "memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file") and value.isdigit():
            return int(value)
    return 0


def device_memory(backend: Backend) -> int:
    """Bytes of the memory that models live in: an NVIDIA GPU's own where MLX computes on one, else ours."""
    if backend != "cuda":
        return total_memory()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
    query = ("--query-gpu=memory.total", "--format=csv,noheader,nounits", "-i", visible or "0")
    megabytes = _ask("nvidia-smi", *query)
    return total_memory() if megabytes is None else megabytes << 20


def _ask(*command: str) -> int | None:
    """The number that a program of the system prints; None when there is no such program or number."""
    try:
        out = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
        return int(out.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def cpu_count(root: Path = Path("/")) -> int:
    """Physical processors (no hyper-threads) this process may use, by affinity and control group quota."""
    if sys.platform == "darwin":
        return os.cpu_count() or 1
    allowed = os.sched_getaffinity(0)
    cores = {
        _read(root / f"sys/devices/system/cpu/cpu{n}/topology/thread_siblings_list") or str(n)
        for n in allowed
    }
    count = len(cores)
    for folder in _groups(root, "cpu"):
        quota, _, period = _read(folder / "cpu.max").partition(" ")
        if not quota:
            quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit() and int(period) > 0:
            count = min(count, -(-int(quota) // int(period)))
    return max(1, count)


def backend(
    system: str = sys.platform, machine: str | None = None, root: Path = Path("/"), wheel: bool | None = None
) -> Backend:
    """The device that mlx will compute on. `wheel`: whether an mlx CUDA wheel is installed (None: look)."""
    if system == "darwin":
        return "metal" if (machine or platform.machine()) == "arm64" else "cpu"
    if not any((root / "dev").glob("nvidia*")):
        return "cpu"
    return "cuda" if (_has_cuda_wheel() if wheel is None else wheel) else "cpu"


def _has_cuda_wheel() -> bool:
    for name in _CUDA_WHEELS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            metadata.distribution(name)
            return True
    return False


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's control groups for a controller, from its own up to the top.

    Inside a container the path in /proc/self/cgroup may be the host's: folders that do not exist do no harm.
    """
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / controllers
        own = top / path.lstrip("/")
        yield own
        for parent in own.parents:
            if not parent.is_relative_to(top):
                break
            yield parent


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""


def resident() -> int:
    """Bytes of memory this process holds; the most that it ever held where the system tells only that."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS, where it is in bytes
    return pages * resource.getpagesize()
