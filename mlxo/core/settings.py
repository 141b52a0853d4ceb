"""Every MLXO_* setting, in one table: read once at start, frozen, passed on explicitly.

README's table of settings is generated from `TABLE`. Where Ollama has a variable of the same meaning it is
read when ours is absent, so that an Ollama user's environment works unchanged.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from mlxo.core import duration
from mlxo.core.errors import InvalidRequest

DEFAULT_PORT = 11434


class Address(msgspec.Struct, frozen=True):
    host: str
    port: int

    @property
    def client(self) -> Address:
        """Where a client connects: an unspecified address means this machine."""
        return Address("127.0.0.1", self.port) if self.host in ("0.0.0.0", "::", "") else self

    @property
    def is_local(self) -> bool:
        return self.client.host in ("127.0.0.1", "::1", "localhost")

    @property
    def is_loopback(self) -> bool:
        """Whether a server bound here is reachable from this machine alone."""
        return self.host in ("127.0.0.1", "::1", "localhost")

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """`[scheme://]host[:port][/path]` as OLLAMA_HOST is read: scheme http means port 80, https 443."""
    scheme, separator, rest = text.strip().strip("\"'").partition("://")
    if not separator:
        scheme, rest = "", scheme
    default = {"http": 80, "https": 443}.get(scheme, DEFAULT_PORT)
    rest = rest.split("/", 1)[0]
    if rest.startswith("["):
        host, _, tail = rest[1:].partition("]")
        port = tail[1:] if tail.startswith(":") else ""
    elif rest.count(":") > 1:
        host, port = rest, ""
    else:
        host, _, port = rest.partition(":")
    if port and not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise InvalidRequest(
            f"the port in MLXO_HOST={text!r} is no number from 1 to 65535",
            "for example MLXO_HOST=127.0.0.1:11434",
        )
    return Address(host or "127.0.0.1", int(port) if port else default)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes are bytes, durations seconds. `keep_alive` below zero is forever."""

    address: Address = Address("127.0.0.1", DEFAULT_PORT)
    home: Path
    keep_alive: float = 300.0
    max_loaded: int = 0
    memory: int = 0
    parallel: int = 16
    max_queue: int = 512
    context: int = 0
    load_timeout: float = 300.0
    stall_timeout: float = 180.0
    spare: bool = True
    cache_size: int = 10 << 30
    origins: tuple[str, ...] = ()
    debug: bool = False
    blas: str = "auto"
    history: bool = True


def _default_home() -> Path:
    import platformdirs

    return Path(platformdirs.user_data_dir("mlxo", appauthor=False))


_FALSE = ("", "0", "f", "false", "no", "off")


def _bool(text: str) -> bool:
    return text.lower() not in _FALSE


def _size(text: str) -> int:
    """Bytes: a plain number, or one with K, M, G or T (powers of 1024), with an optional B."""
    body = text.upper().removesuffix("B").removesuffix("I")
    units = {"K": 10, "M": 20, "G": 30, "T": 40}
    if body and body[-1] in units:
        return int(float(body[:-1]) * (1 << units[body[-1]]))
    return int(body)


def _keep_alive(text: str) -> float:
    """A duration, or a bare number of seconds: the variable takes both where the API does not."""
    try:
        return float(text)
    except ValueError:
        return duration.parse(text)


def _origins(text: str) -> tuple[str, ...]:
    return tuple(o.strip() for o in text.split(",") if o.strip())


class Row(NamedTuple):
    variable: str
    ollama: str | None
    field: str
    parse: Callable[[str], Any]
    default: str
    help: str


TABLE: tuple[Row, ...] = (
    Row(
        "MLXO_HOST",
        "OLLAMA_HOST",
        "address",
        parse_address,
        "127.0.0.1:11434",
        "where the server listens and clients connect",
    ),
    Row(
        "MLXO_HOME",
        None,
        "home",
        lambda t: Path(t).expanduser(),
        "the user's data folder",
        "everything mlxo keeps: models, logs, history",
    ),
    Row(
        "MLXO_KEEP_ALIVE",
        "OLLAMA_KEEP_ALIVE",
        "keep_alive",
        _keep_alive,
        "5m",
        "how long an idle model stays loaded; negative is forever",
    ),
    Row(
        "MLXO_MAX_LOADED_MODELS",
        "OLLAMA_MAX_LOADED_MODELS",
        "max_loaded",
        int,
        "0",
        "how many models are loaded at most; 0 leaves it to the memory",
    ),
    Row(
        "MLXO_MEMORY",
        None,
        "memory",
        _size,
        "0",
        "memory for models, such as 12G; 0 is three quarters of the machine's",
    ),
    Row(
        "MLXO_NUM_PARALLEL",
        "OLLAMA_NUM_PARALLEL",
        "parallel",
        int,
        "16",
        "sequences of one model that step together",
    ),
    Row(
        "MLXO_MAX_QUEUE",
        "OLLAMA_MAX_QUEUE",
        "max_queue",
        int,
        "512",
        "requests that may wait before the answer is 503",
    ),
    Row(
        "MLXO_CONTEXT_LENGTH",
        "OLLAMA_CONTEXT_LENGTH",
        "context",
        int,
        "0",
        "default num_ctx; 0 is the model's own",
    ),
    Row(
        "MLXO_LOAD_TIMEOUT",
        "OLLAMA_LOAD_TIMEOUT",
        "load_timeout",
        _keep_alive,
        "5m",
        "how long a model may take to load",
    ),
    Row(
        "MLXO_STALL_TIMEOUT",
        None,
        "stall_timeout",
        _keep_alive,
        "3m",
        "how long a model's runner may stand still before it is replaced; 0 is for ever",
    ),
    Row(
        "MLXO_SPARE",
        None,
        "spare",
        _bool,
        "1",
        "0 keeps no runner ready for the next model, which then takes seconds longer to start",
    ),
    Row(
        "MLXO_CACHE_SIZE",
        None,
        "cache_size",
        _size,
        "10G",
        "disk space for prompts that models have read, so that they need not read them again; 0 keeps none",
    ),
    Row(
        "MLXO_ORIGINS",
        "OLLAMA_ORIGINS",
        "origins",
        _origins,
        "",
        "browser origins allowed beside the local ones, comma-separated",
    ),
    Row("MLXO_DEBUG", "OLLAMA_DEBUG", "debug", _bool, "0", "1 logs more"),
    Row(
        "MLXO_BLAS",
        None,
        "blas",
        str,
        "auto",
        "Linux without a GPU: `auto` finds a fast BLAS, `off` keeps the bundled one, or a path",
    ),
    Row("MLXO_HISTORY", None, "history", _bool, "1", "0 keeps no prompt history"),
)


def load(environ: Mapping[str, str] | None = None) -> Settings:
    """Settings out of the environment. Raises InvalidRequest naming the variable that does not parse."""
    env = os.environ if environ is None else environ
    found: dict[str, Any] = {}
    for row in TABLE:
        for variable in (row.variable, row.ollama):
            text = env.get(variable, "").strip().strip("\"'") if variable else ""
            if not text:
                continue
            try:
                found[row.field] = row.parse(text)
            except ValueError:
                raise InvalidRequest(f"{variable}={text!r} cannot be read", f"it is {row.help}") from None
            break
    home = found.pop("home", None) or _default_home()
    return Settings(home=home, **found)
