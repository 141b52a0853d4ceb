"""`mlxo serve`: one daemon a home, from its lock to its last answer. Never imports MLX."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import http.client
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import msgspec
from aiohttp import web
from filelock import FileLock, Timeout

from mlxo import __version__
from mlxo.core import duration, logs
from mlxo.core import settings as core_settings
from mlxo.core.errors import InvalidRequest, MlxoError
from mlxo.core.paths import Paths
from mlxo.core.settings import Address, Settings
from mlxo.core.types import ModelSpec
from mlxo.hardware import detect, estimate
from mlxo.server.app import init_app
from mlxo.server.child import Launch
from mlxo.server.policy import Limits
from mlxo.server.scheduler import Scheduler
from mlxo.server.spare import Spares
from mlxo.store.gc import GRACE
from mlxo.store.registry import Registry

log = logging.getLogger(__name__)

HANDLER_GRACE = 3.0  # seconds for handlers to write their last lines at shutdown
FREE_FOR_SPARE = 1 << 30  # bytes the machine must have free for a spare runner of a tenth of that
PROBE_SECONDS = 2.0  # to ask who holds the port

USAGE = """\
Usage: mlxo serve

Run the server in the foreground, until Ctrl-C or SIGTERM. Other commands start one by themselves.
MLXO_HOST is the address it listens on (127.0.0.1:11434), MLXO_HOME the folder of its models.
"""


def serve(argv: list[str]) -> int:
    """Run until a signal says stop; the exit code. Raises MlxoError when it cannot start."""
    if argv in (["-h"], ["--help"]):
        print(USAGE, end="")
        return 0
    if argv:
        raise InvalidRequest(
            f'"mlxo serve" takes no arguments, and got {argv[0]!r}', "see: mlxo serve --help"
        )
    settings = core_settings.load()
    logs.setup("server", debug=settings.debug)
    paths = Paths(settings.home.absolute())
    with _only_one(paths):
        if asyncio.run(_serve(settings, paths)):
            os._exit(0)  # a job's thread is stuck, in a system call of the network say; nobody waits for it
    return 0


@contextlib.contextmanager
def _only_one(paths: Paths) -> Iterator[None]:
    """Hold the lock that says that this home has its daemon. Raises MlxoError when that cannot be."""
    lock = FileLock(paths.daemon_lock)
    try:
        paths.home.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
        paths.daemon_state.unlink(
            missing_ok=True
        )  # of a daemon that was killed: its pid may be another's now
    except Timeout:
        where = ""
        with contextlib.suppress(OSError, msgspec.DecodeError, KeyError, TypeError):
            state = msgspec.json.decode(paths.daemon_state.read_bytes())
            where = f" on {state['address']} (pid {state['pid']})"
        raise MlxoError(
            f"an mlxo server of {paths.home} is running already{where}",
            "mlxo daemon stop ends it; another MLXO_HOME and MLXO_HOST run a second one",
        ) from None
    except OSError as e:
        reason = os.strerror(e.errno) if e.errno else str(e)
        raise MlxoError(f"cannot use {paths.home}: {reason}", "MLXO_HOME names another folder") from None
    try:
        yield
    finally:
        lock.release()


async def _serve(settings: Settings, paths: Paths) -> bool:
    """Whether a thread was left behind that does not end."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    backend = detect.backend()
    memory = detect.device_memory(backend)
    budget = settings.memory or memory * 3 // 4
    # A GPU's memory, and a Mac's, which gives and compresses, have no figure that is worth a refusal.
    measured = backend == "cpu" and sys.platform == "linux" and not settings.memory
    spares = Spares(Launch.from_settings(settings), lambda: _room(settings, scheduler, budget))
    scheduler = Scheduler(
        spares.start,
        partial(_size, backend=backend, machine=memory, context=settings.context),
        Limits(budget, settings.max_loaded, most=settings.memory or memory),
        keep_alive=settings.keep_alive,
        rows=settings.parallel,
        max_queue=settings.max_queue,
        patience=settings.load_timeout,
        free=detect.free_memory if measured else None,
        idle=spares.idle,
    )
    registry = Registry(paths)
    app = init_app(settings, registry, scheduler)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=HANDLER_GRACE)
    await runner.setup()
    try:
        await _listen(runner, settings.address)
        _write_state(paths, settings.address)
        log.info(
            "mlxo %s is listening on http://%s, home %s, up to %d MB of models, kept for %s",
            __version__,
            settings.address,
            paths.home,
            budget >> 20,
            "ever" if settings.keep_alive < 0 else duration.show(int(settings.keep_alive * 1e9)),
        )
        gc.freeze()  # what the imports made stays: no collection needs to look at it again
        _tell_ready()
        spares.idle(True)
        sweeping = asyncio.create_task(_sweep(registry))
        await stop.wait()
        log.info("stopping")
        await sweeping
    finally:
        await runner.cleanup()
        await spares.close()
        paths.daemon_state.unlink(missing_ok=True)
    return any(t.name.startswith("job") and t.is_alive() for t in threading.enumerate())


async def _sweep(registry: Registry) -> None:
    """Once a start: what killed work left behind an hour ago or more goes."""
    try:
        freed = await asyncio.to_thread(registry.gc, GRACE)
    except MlxoError as e:
        log.warning("no garbage was collected: %s", e)
        return
    if freed.removed:
        log.info("garbage collected: %d files, %d MB", freed.removed, freed.bytes >> 20)


def _size(spec: ModelSpec, backend: str, machine: int, context: int) -> int:
    tokens = spec.options.num_ctx or context or estimate.CONTEXT
    size = estimate.of_folder(Path(spec.path), spec.weights, backend, machine, tokens)
    if spec.draft_weights and spec.draft:
        draft = estimate.of_folder(Path(spec.draft), spec.draft_weights, backend, machine, tokens)
        size += draft - estimate.PROCESS
    return size


def _room(settings: Settings, scheduler: Scheduler, budget: int) -> bool:
    """Whether a spare may be kept: it counts like a model of no weights, and the machine must have plenty."""
    enough = detect.free_memory() >= FREE_FOR_SPARE
    return settings.spare and enough and scheduler.used() + estimate.PROCESS <= budget


async def _listen(runner: web.AppRunner, address: Address) -> None:
    """Raises MlxoError that says who is there, or what is wrong with the address."""
    try:
        await web.TCPSite(runner, address.host, address.port).start()
    except socket.gaierror:
        raise MlxoError(f"{address.host!r} is no address of this machine", _elsewhere(address)) from None
    except OSError as e:
        if e.errno == errno.EADDRINUSE:
            raise MlxoError(_holder(address), _elsewhere(address)) from None
        reason = os.strerror(e.errno) if e.errno else str(e)
        raise MlxoError(f"cannot listen on {address}: {reason}", _elsewhere(address)) from None


def _holder(address: Address) -> str:
    """Who holds the port: another mlxo, Ollama, or a program that speaks neither."""
    client = address.client
    connection = http.client.HTTPConnection(client.host, client.port, timeout=PROBE_SECONDS)
    try:
        connection.request("GET", "/api/version")
        response = connection.getresponse()
        server = response.getheader("Server", "")
        version = msgspec.json.decode(response.read(4096))["version"]
    except (OSError, http.client.HTTPException, msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError):
        return f"another program holds {address}"
    finally:
        connection.close()
    if server.startswith("mlxo/"):
        return f"another mlxo server, of another MLXO_HOME, holds {address}"
    return f"Ollama {version} holds {address}"


def _elsewhere(address: Address) -> str:
    port = address.port + 1 if address.port < 65535 else core_settings.DEFAULT_PORT
    return f"stop it, or choose another address, for example MLXO_HOST=127.0.0.1:{port}"


def _write_state(paths: Paths, address: Address) -> None:
    state = {"pid": os.getpid(), "address": str(address), "version": __version__}
    temporary = paths.daemon_state.with_suffix(".tmp")
    temporary.write_bytes(msgspec.json.encode(state))
    temporary.replace(paths.daemon_state)


def _tell_ready() -> None:
    """MLXO_READY_FD is the pipe of whoever started us and waits."""
    text = os.environ.pop("MLXO_READY_FD", "")
    if text.isdigit():
        with contextlib.suppress(OSError):
            os.write(int(text), b"ready\n")
            os.close(int(text))
