from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from mlxo.hardware import detect

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and control groups")


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@linux
@pytest.mark.parametrize(
    "files",
    [
        {
            "proc/self/cgroup": "0::/a/b\n",
            "sys/fs/cgroup/a/b/memory.max": "max\n",
            "sys/fs/cgroup/a/memory.max": "1048576\n",
        },
        {"proc/self/cgroup": "0::/host/path\n", "sys/fs/cgroup/memory.max": "1048576\n"},
        {
            "proc/self/cgroup": "4:memory:/x\n0::/\n",
            "sys/fs/cgroup/memory/x/memory.limit_in_bytes": "1048576\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        },
    ],
    ids=["v2 parent", "v2 in a container", "v1"],
)
def test_memory_limit_of_a_control_group_counts(tmp_path: Path, files: dict[str, str]) -> None:
    assert detect.total_memory(write(tmp_path, files)) == 1048576


@linux
def test_memory_without_limits_is_the_machine_s(tmp_path: Path) -> None:
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert detect.total_memory(tmp_path) == machine
    files = {"proc/self/cgroup": "garbage\n:\n0::/\n", "sys/fs/cgroup/memory.max": "max\n"}
    assert detect.total_memory(write(tmp_path, files)) == machine


@linux
@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"sys/fs/cgroup/cpu.max": "150000 100000\n"}, 2),
        ({"sys/fs/cgroup/cpu.max": "max 100000\n"}, 4),
        ({"sys/fs/cgroup/cpu.max": "100 0\n"}, 4),
        ({"sys/fs/cgroup/cpu.max": "1 100000\n"}, 1),
    ],
)
def test_processors_by_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1, 2, 3})
    assert detect.cpu_count(write(tmp_path, {"proc/self/cgroup": "0::/\n", **files})) == expected


@linux
def test_hyper_threads_are_no_processors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1, 2, 3})
    topology = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    files = {topology.format(n): f"{n % 2},{n % 2 + 2}\n" for n in range(4)}
    files |= {
        "proc/self/cgroup": "7:cpu,cpuacct:/j\n",
        "sys/fs/cgroup/cpu,cpuacct/j/cpu.cfs_quota_us": "-1\n",
    }
    files |= {"sys/fs/cgroup/cpu,cpuacct/j/cpu.cfs_period_us": "100000\n"}
    assert detect.cpu_count(write(tmp_path, files)) == 2
    write(tmp_path, {"sys/fs/cgroup/cpu,cpuacct/j/cpu.cfs_quota_us": "100000\n"})
    assert detect.cpu_count(tmp_path) == 1


def test_backend(tmp_path: Path) -> None:
    assert detect.backend("darwin", "arm64") == "metal"
    assert detect.backend("darwin", "x86_64") == "cpu"
    assert detect.backend("linux", root=tmp_path, wheel=True) == "cpu"
    write(tmp_path, {"dev/nvidia0": ""})
    assert detect.backend("linux", root=tmp_path, wheel=True) == "cuda"
    assert detect.backend("linux", root=tmp_path, wheel=False) == "cpu"


@linux
@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({"proc/self/cgroup": "0::/\n", "proc/meminfo": "MemTotal: 9 kB\nMemAvailable: 7 kB\n"}, 7 << 10),
        (
            {
                "proc/self/cgroup": "0::/a\n",
                "proc/meminfo": "MemAvailable: 7 kB\n",
                "sys/fs/cgroup/a/memory.max": "5000\n",
                "sys/fs/cgroup/a/memory.current": "4500\n",
                "sys/fs/cgroup/a/memory.stat": "anon 1\ninactive_file 400\n",
            },
            900,
        ),
        (
            {
                "proc/self/cgroup": "4:memory:/x\n",
                "proc/meminfo": "MemAvailable: 7 kB\n",
                "sys/fs/cgroup/memory/x/memory.limit_in_bytes": "5000\n",
                "sys/fs/cgroup/memory/x/memory.usage_in_bytes": "5001\n",
            },
            0,
        ),
    ],
    ids=["machine", "v2", "v1"],
)
def test_free_memory(tmp_path: Path, files: dict[str, str], free: int) -> None:
    assert detect.free_memory(write(tmp_path, files)) == free


@linux
@pytest.mark.parametrize(("said", "found"), [("143771", 143771 << 20), ("N/A", None), (None, None)])
def test_a_gpu_is_asked_for_its_own_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str | None, found: int | None
) -> None:
    if said is not None:
        program = tmp_path / "nvidia-smi"
        program.write_text(f'#!/bin/sh\n[ "$4" = 3 ] && echo {said}\n')
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    assert detect.device_memory("cuda") == (found or detect.total_memory())
    assert detect.device_memory("cpu") == detect.total_memory()
