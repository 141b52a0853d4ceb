from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from mlxo.hardware import doctor
from mlxo.hardware.doctor import Facts
from mlxo.hardware.machine import Gpu, Machine

GIB = 1 << 30
MAC = Facts(
    system="darwin",
    machine=Machine(memory=36 * GIB, limit=36 * GIB, wired_limit=0),
    backend="metal",
    budget=27 * GIB,
    home=Path("/home"),
    disk=200 * GIB,
    blas=True,
    compiler=True,
)
LINUX = msgspec.structs.replace(
    MAC, system="linux", backend="cpu", machine=Machine(memory=36 * GIB, limit=36 * GIB)
)
H200 = Machine(memory=36 * GIB, limit=36 * GIB, gpus=(Gpu(name="NVIDIA H200", memory=141 * GIB),))


def change(facts: Facts, **values: Any) -> Facts:
    """`values` are the fields of Facts, and of the machine in them."""
    inside = {k: values.pop(k) for k in list(values) if k in Machine.__struct_fields__}
    facts = msgspec.structs.replace(facts, **values)
    return msgspec.structs.replace(facts, machine=msgspec.structs.replace(facts.machine, **inside))


@pytest.mark.parametrize(
    "facts",
    [
        MAC,
        LINUX,
        change(MAC, wired_limit=30 * GIB),
        change(MAC, blas=False, compiler=False),  # a Mac needs neither
        change(LINUX, machine=H200, backend="cuda", budget=100 * GIB, blas=False, compiler=False),
    ],
)
def test_a_sound_machine_needs_nothing(facts: Facts) -> None:
    assert doctor.examine(facts) == []


@pytest.mark.parametrize(
    ("facts", "about", "command"),
    [
        (change(MAC, translated=True), "python", "arch -arm64 zsh"),
        (change(LINUX, machine=H200), "cuda", "-m pip install 'mlx[cuda12]'"),
        (change(LINUX, blas=False), "blas", "sudo apt-get install libopenblas0-pthread"),
        (change(LINUX, blas=False, manager="dnf"), "blas", "sudo dnf install openblas-threads"),
        (change(LINUX, compiler=False, manager="pacman"), "compiler", "sudo pacman -S gcc"),
        (change(MAC, wired_limit=35 * GIB), "wired", "sudo sysctl iogpu.wired_limit_mb=0"),
        (change(MAC, wired_limit=20 * GIB), "wired", "sudo sysctl iogpu.wired_limit_mb=27648"),
        (change(LINUX, budget=40 * GIB), "memory", "unset MLXO_MEMORY; mlxo daemon restart"),
        (change(LINUX, limit=8 * GIB), "memory", "unset MLXO_MEMORY; mlxo daemon restart"),
        (change(LINUX, disk=9 * 10**9), "disk", "mlxo gc; mlxo cache clear"),
    ],
)
def test_an_ill_has_a_command(facts: Facts, about: str, command: str) -> None:
    (finding,) = doctor.examine(facts)
    assert finding.about == about
    assert finding.command.endswith(command)
    assert "\n" not in finding.problem


def test_no_compiler_and_no_blas_are_mended_by_one_command() -> None:
    first, second = doctor.examine(change(LINUX, blas=False, compiler=False))
    assert (first.about, second.about) == ("blas", "compiler")
    assert first.command == second.command == "sudo apt-get install g++"
