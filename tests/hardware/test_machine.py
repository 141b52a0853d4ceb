"""Outputs of macOS here were composed from the formats of sysctl(8) and system_profiler(8), not recorded."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from mlxo.hardware import machine
from mlxo.hardware.machine import Cores, Gpu
from tests.hardware.test_detect import write

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and control groups")

# Chip, kinds of cores from the fastest on, GPU cores, GiB of memory -> 10**9 bytes a second.
MACS = [
    ("M1", {"Performance": 4, "Efficiency": 4}, 8, 16, 68),
    ("M1 Pro", {"Performance": 8, "Efficiency": 2}, 16, 32, 200),
    ("M1 Max", {"Performance": 8, "Efficiency": 2}, 32, 64, 400),
    ("M1 Ultra", {"Performance": 16, "Efficiency": 4}, 64, 128, 800),
    ("M2", {"Performance": 4, "Efficiency": 4}, 10, 24, 100),
    ("M2 Pro", {"Performance": 8, "Efficiency": 4}, 19, 32, 200),
    ("M2 Max", {"Performance": 8, "Efficiency": 4}, 38, 96, 400),
    ("M2 Ultra", {"Performance": 16, "Efficiency": 8}, 76, 192, 800),
    ("M3", {"Performance": 4, "Efficiency": 4}, 10, 24, 100),
    ("M3 Pro", {"Performance": 6, "Efficiency": 6}, 18, 36, 150),
    ("M3 Max", {"Performance": 10, "Efficiency": 4}, 30, 36, 300),
    ("M3 Max", {"Performance": 12, "Efficiency": 4}, 40, 128, 400),
    ("M3 Ultra", {"Performance": 24, "Efficiency": 8}, 80, 512, 819),
    ("M4", {"Performance": 4, "Efficiency": 6}, 10, 32, 120),
    ("M4 Pro", {"Performance": 10, "Efficiency": 4}, 20, 64, 273),
    ("M4 Max", {"Performance": 10, "Efficiency": 4}, 32, 36, 410),
    ("M4 Max", {"Performance": 12, "Efficiency": 4}, 40, 128, 546),
    ("M5", {"Performance": 4, "Efficiency": 6}, 10, 32, 153),
    ("M5 Pro", {"Super": 6, "Performance": 12}, 20, 64, 307),
    ("M5 Max", {"Super": 6, "Performance": 12}, 32, 36, 460),
    ("M5 Max", {"Super": 6, "Performance": 12}, 40, 128, 614),
]


def sysctl(chip: str, cores: dict[str, int], gib: int, wired_mb: int | None = 0, translated: int = 0) -> str:
    total = sum(cores.values())
    lines = [f"hw.ncpu: {total}", "hw.byteorder: 1234", f"hw.memsize: {gib << 30}"]
    for level, (name, count) in enumerate(cores.items()):
        prefix = f"hw.perflevel{level}"
        lines += [f"{prefix}.physicalcpu: {count}", f"{prefix}.physicalcpu_max: {count}"]
        lines += [f"{prefix}.l2cachesize: 16777216", f"{prefix}.name: {name}"]
    lines += [f"hw.physicalcpu: {total}", f"hw.nperflevels: {len(cores)}", "hw.cputype: 16777228"]
    lines += [f"machdep.cpu.core_count: {total}", f"machdep.cpu.brand_string: Apple {chip}"]
    lines += [] if wired_mb is None else [f"iogpu.wired_limit_mb: {wired_mb}", "iogpu.dynamic_lwm: 1"]
    return "\n".join([*lines, f"sysctl.proc_translated: {translated}", ""])


def profiler(chip: str, gpu_cores: int) -> str:
    gpu = {
        "_name": f"Apple {chip}",
        "spdisplays_mtlgpufamilysupport": "spdisplays_metal3",
        "spdisplays_ndrvs": [{"_name": "Color LCD"}],
        "spdisplays_vendor": "sppci_vendor_Apple",
        "sppci_bus": "spdisplays_builtin",
        "sppci_cores": str(gpu_cores),
        "sppci_device_type": "spdisplays_gpu",
        "sppci_model": f"Apple {chip}",
    }
    return json.dumps({"SPDisplaysDataType": [gpu]})


@pytest.mark.parametrize(("chip", "cores", "gpu_cores", "gib", "speed"), MACS)
def test_a_mac_is_what_its_system_says(
    chip: str, cores: dict[str, int], gpu_cores: int, gib: int, speed: float
) -> None:
    found = machine.apple(sysctl(chip, cores, gib), profiler(chip, gpu_cores))
    assert found == machine.Machine(
        processor=f"Apple {chip}",
        generation=int(chip[1]),
        cores=tuple(Cores(kind=kind.lower(), count=count) for kind, count in cores.items()),
        gpus=(Gpu(name=f"Apple {chip}", cores=gpu_cores),),
        memory=gib << 30,
        limit=gib << 30,
        wired_limit=0,
        bandwidth=speed,
    )


def test_every_chip_of_the_table_is_tried() -> None:
    assert {row[0] for row in machine._BANDWIDTH} - {"M5 Ultra", "A18 Pro"} == {chip for chip, *_ in MACS}


def test_what_a_mac_leaves_out() -> None:
    cores = {"Performance": 8}
    found = machine.apple(sysctl("M9 Max", cores, 64, wired_mb=60000, translated=1), "no JSON")
    assert (found.generation, found.bandwidth, found.gpus) == (9, None, ())
    assert (found.wired_limit, found.translated) == (60000 << 20, True)
    assert machine.apple(sysctl("M3 Max", cores, 64), "{}").bandwidth == 300  # no GPU cores: the lesser
    intel = machine.apple(
        "hw.memsize: 8589934592\nhw.physicalcpu: 4\nmachdep.cpu.brand_string: Intel(R) CPU: 2.6GHz\n",
        '{"SPDisplaysDataType": [{"sppci_model": "Intel Iris"}]}',
    )
    assert intel.processor == "Intel(R) CPU: 2.6GHz"
    assert intel.cores == (Cores(kind="physical", count=4),)
    assert intel.gpus == (Gpu(name="Intel Iris"),)
    assert (intel.generation, intel.wired_limit, intel.bandwidth) == (None, None, None)


@linux
def test_linux(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1})
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    write(
        tmp_path,
        {
            "proc/cpuinfo": "processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: fpu sse2 fma avx2 avx512f\n",
            "proc/meminfo": f"MemTotal:       {1 << 40} kB\nMemFree: 9 kB\n",
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/memory.max": f"{8 << 30}\n",
        },
    )
    found = machine.linux(tmp_path, "NVIDIA H200, 143771\nNVIDIA GB10, [N/A]\n")
    assert found == machine.Machine(
        processor="AMD EPYC",
        cores=(Cores(kind="physical", count=2), Cores(kind="logical", count=4)),
        features=("avx2", "fma", "avx512f"),
        gpus=(Gpu(name="NVIDIA H200", memory=143771 << 20), Gpu(name="NVIDIA GB10")),
        memory=1 << 50,
        limit=8 << 30,
    )


@linux
def test_linux_on_arm_names_the_board(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd sve bf16\nCPU part\t: 0xd40\n",
            "proc/device-tree/model": "Raspberry Pi 5\0",
            "proc/self/cgroup": "0::/\n",
        },
    )
    found = machine.linux(tmp_path, "")
    assert (found.processor, found.features) == ("Raspberry Pi 5", ("asimd", "bf16", "sve"))
    assert found.gpus == ()


def test_this_machine_has_cores_and_memory() -> None:
    found = machine.find()
    assert found.processor
    assert all(cores.count > 0 for cores in found.cores)
    assert 0 < found.limit <= found.memory
