"""`mlxo doctor`: what this machine is, what is slow or missing on it, and the command that mends each."""

from __future__ import annotations

from importlib import metadata

import click

from mlxo import __version__
from mlxo.cli import output
from mlxo.cli.client import Client
from mlxo.cli.daemon import STATUS_SECONDS, running
from mlxo.core import settings as core_settings
from mlxo.core.errors import MlxoError
from mlxo.core.paths import Paths
from mlxo.core.settings import Address, Settings
from mlxo.hardware.doctor import Facts, Finding, examine, look
from mlxo.hardware.machine import Machine


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(as_json: bool) -> int:
    """Say what this machine is, what is slow or missing, and what mends it. The exit code is 1 then."""
    import msgspec

    settings = core_settings.load()
    facts = look(settings)
    server, trouble = _server(settings)
    findings = [*examine(facts), *trouble]
    if as_json:
        output.print_json(
            {
                "version": __version__,
                "machine": msgspec.to_builtins(facts.machine),
                "backend": facts.backend,
                "budget": facts.budget,
                "disk": facts.disk,
                "home": str(facts.home),
                "server": server,
                "findings": msgspec.to_builtins(findings),
            }
        )
    else:
        for name, value in (*_rows(facts), ("server", f"{settings.address}, {server}")):
            print(f"{name:<12}{output.clean(value)}")
        for finding in findings:
            print(f"\n{finding.about}: {output.clean(finding.problem)}\n    {finding.command}")
        if not findings:
            print("\nall is well")
    return 1 if findings else 0


def _rows(facts: Facts) -> list[tuple[str, str]]:
    machine = facts.machine
    rows = [
        ("processor", ", ".join([machine.processor or "unknown", *machine.features])),
        ("cores", ", ".join(f"{cores.count} {cores.kind}" for cores in machine.cores)),
    ]
    for gpu in machine.gpus:
        size = [_gib(gpu.memory)] if gpu.memory else []
        rows.append(("GPU", ", ".join([gpu.name, *([f"{gpu.cores} cores"] if gpu.cores else size)])))
    rows.append(("memory", _memory(machine)))
    if machine.wired_limit is not None:
        rows.append(("wired limit", _gib(machine.wired_limit) if machine.wired_limit else "the system's own"))
    rows += [
        ("MLX", f"{_version('mlx')} on {facts.backend}, mlx-lm {_version('mlx-lm')}"),
        ("models", f"{_gib(facts.budget)} in memory at most, kept in {facts.home}"),
        ("disk", f"{output.size(facts.disk)} free"),
    ]
    return rows


def _memory(machine: Machine) -> str:
    parts = [_gib(machine.memory)]
    if machine.limit < machine.memory:
        parts.append(f"limited to {_gib(machine.limit)}")
    if machine.bandwidth:
        parts.append(f"{machine.bandwidth:g} GB/s")
    return ", ".join(parts)


def _gib(count: int) -> str:
    return f"{count / (1 << 30):.1f} GiB"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _server(settings: Settings) -> tuple[str, list[Finding]]:
    """In a few words, and what is wrong with it."""
    address, paths = settings.address, Paths(settings.home)
    if not address.is_local:
        return "on another machine", []
    left = paths.daemon_state.exists()
    try:
        state = running(paths)
    except MlxoError as e:
        return "starting or stopping", [_trouble(e.message, "mlxo daemon status")]
    if state is not None:
        return _running(core_settings.parse_address(state.address), state.pid)
    trouble = []
    if left:
        trouble.append(
            _trouble("the last server did not end by itself, it crashed or was killed", "mlxo daemon logs")
        )
    if Client(address.client).listening():
        other = Address(address.host, address.port + 1 if address.port < 65535 else address.port - 1)
        problem = f"another program listens on {address}, or a server of another MLXO_HOME"
        return "not ours", [*trouble, _trouble(problem, f"export MLXO_HOST={other}", "port")]
    return "not running", trouble


def _running(address: Address, pid: int) -> tuple[str, list[Finding]]:
    words = f"running (pid {pid})"
    try:
        version = Client(address.client).get("/api/version", STATUS_SECONDS).get("mlxo")
    except MlxoError:
        return words, [_trouble("the server does not answer", "mlxo daemon restart")]
    if version != __version__:
        return words, [
            _trouble(f"the server is mlxo {version}, and this is {__version__}", "mlxo daemon restart")
        ]
    return words, []


def _trouble(problem: str, command: str, about: str = "server") -> Finding:
    return Finding(about=about, problem=problem, command=command)
