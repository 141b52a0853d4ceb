"""The environment that gives a runner a fast float32 matrix product on Linux without a GPU.

libmlx.so of the mlx-cpu wheel takes `cblas_sgemm` from the reference BLAS in the same wheel: about 4 GFLOP/s.
A library that is preloaded and exports that one name takes its place; what else MLX imports (dgemm, cgemm,
LAPACK) inference does not use, float16 and quantised products do not go through BLAS. In this order:

1. the OpenBLAS inside numpy's wheel, behind sgemm.c, compiled once into MLXO_HOME/cache (10 kB);
2. an OpenBLAS of the system, preloaded as it is;
3. nothing, and a line in the log that says what would help.

numpy and mlx are looked for, never imported.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from mlxo.core.errors import InvalidRequest
from mlxo.hardware import detect

log = logging.getLogger(__name__)

_SOURCE = Path(__file__).with_name("sgemm.c")
_COMPILERS = ("cc", "gcc", "clang")
_FLAGS = ("-O2", "-shared", "-fPIC", "-pthread")
_COMPILE_SECONDS = 60

# Run with the new shim preloaded: the symbol must be the shim's and the product right. Row-major 2 x 2, and
# 4 rows because up to three do not reach sgemm.
_CHECK = """
import ctypes
f = ctypes.CDLL(None).cblas_sgemm
a = (ctypes.c_float * 8)(1, 2, 3, 4, 5, 6, 7, 8)
b = (ctypes.c_float * 4)(1, 2, 3, 4)
c = (ctypes.c_float * 8)()
x = ctypes.c_float
for rows in (1, 4):
    f(101, 111, 112, rows, 2, 2, x(1), a, 2, b, 2, x(0), c, 2)
raise SystemExit(list(c) != [5, 11, 11, 25, 17, 39, 23, 53])
"""


def environment(
    setting: str, home: Path, base_env: Mapping[str, str], *, system: str = sys.platform
) -> dict[str, str]:
    """What to add to a runner's environment; {} where nothing is to gain (not Linux, CUDA, off, no library).

    `setting` is MLXO_BLAS: `auto`, `off`, or the path of a library that exports cblas_sgemm with 32-bit
    integers. Raises InvalidRequest when that path is no file. The first call may compile (about a second);
    later ones only look at files. A failed attempt is not remembered, so that a repair works at once.
    """
    if system != "linux" or setting == "off" or detect.backend(system) != "cpu":
        return {}
    threads = str(detect.cpu_count())
    if setting != "auto":
        library = Path(setting).expanduser().absolute()
        if not library.is_file():
            raise InvalidRequest(
                f"MLXO_BLAS={setting} is no file", "give the path of a BLAS library, auto or off"
            )
    elif found := find(home, base_env):
        library = found
        if found.parent != _cache(home):
            # Its own threads spin for one another (see sgemm.c): leave a core for the rest of the machine.
            threads = str(max(1, detect.cpu_count() - 1))
    else:
        log.warning(
            "no fast BLAS: models in float32 run 10 to 50 times slower than they could; "
            "install a C compiler (apt-get install gcc libc6-dev) or OpenBLAS "
            "(apt-get install libopenblas0-pthread)"
        )
        return {}
    if any(c in str(library) for c in " :"):
        # ld.so splits LD_PRELOAD at both and knows no quoting.
        log.warning(
            "%s cannot be preloaded: move it (MLXO_HOME) to a path without spaces and colons", library
        )
        return {}
    return _preload(library, threads, base_env)


def find(home: Path, base_env: Mapping[str, str]) -> Path | None:
    """The library that would be preloaded, compiled now if need be; None when there is none."""
    return _shim(_cache(home), base_env) or _system_openblas()


def _cache(home: Path) -> Path:
    return (home / "cache").absolute()


def _preload(library: Path, threads: str, base_env: Mapping[str, str]) -> dict[str, str]:
    """LD_PRELOAD with the library first, then what was there; a thread count that the user gave stays."""
    earlier = base_env.get("LD_PRELOAD", "").strip()
    added = {"LD_PRELOAD": f"{library}:{earlier}" if earlier else str(library)}
    if not base_env.get("OPENBLAS_NUM_THREADS"):
        added["OPENBLAS_NUM_THREADS"] = threads
    return added


def _numpy_openblas() -> Path | None:
    """The ILP64 OpenBLAS that numpy 2's Linux wheels carry beside the package."""
    spec = importlib.util.find_spec("numpy")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent.parent / "numpy.libs"
    return next(iter(sorted(folder.glob("libscipy_openblas64_*.so"))), None)


def _system_openblas() -> Path | None:
    """The system's OpenBLAS by the dynamic linker's cache, or in the folders where distributions put it."""
    folders = [Path("/usr/lib") / f"{platform.machine()}-linux-gnu" / d for d in ("openblas-pthread", "")]
    for folder in (*folders, Path("/usr/lib64"), Path("/usr/lib"), Path("/usr/local/lib")):
        library = folder / "libopenblas.so.0"
        if library.is_file():
            return library
    return None


def _shim(cache: Path, base_env: Mapping[str, str]) -> Path | None:
    """sgemm.c compiled for numpy's OpenBLAS, from the cache or made now; None when that cannot be.

    The name holds a hash of all that goes in: the source, the library's path (numpy's build is part of its
    name) and this machine's kind. Made under a name of its own, tried, and only then renamed.
    """
    library = _numpy_openblas()
    if library is None:
        return None
    source = _SOURCE.read_bytes()
    key = hashlib.sha256(
        source + f"\0{library}\0{platform.machine()}\0{' '.join(_FLAGS)}".encode()
    ).hexdigest()
    shim = cache / f"sgemm-{key[:16]}.so"
    if shim.is_file():
        return shim
    search = base_env.get("PATH", os.defpath)
    compiler = next(filter(None, (shutil.which(c, path=search) for c in _COMPILERS)), None)
    if compiler is None:
        log.info("no C compiler for the fast BLAS in %s", search)
        return None
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix="sgemm-") as work:
            made = Path(work) / shim.name
            problem = _compile(compiler, library, made, base_env) or _try(made, base_env)
            if problem is None:
                made.rename(shim)
                return shim
    except OSError as error:  # a full or read-only disk
        problem = str(error)
    log.warning("the fast BLAS cannot be built: %s", problem)
    return None


def _compile(compiler: str, library: Path, out: Path, base_env: Mapping[str, str]) -> str | None:
    """What went wrong, or None."""
    quoted = str(library).replace("\\", "\\\\").replace('"', '\\"')
    return _run([compiler, *_FLAGS, f'-DLIBRARY="{quoted}"', str(_SOURCE), "-o", str(out), "-ldl"], base_env)


def _try(shim: Path, base_env: Mapping[str, str]) -> str | None:
    return _run([sys.executable, "-I", "-S", "-c", _CHECK], {**base_env, "LD_PRELOAD": str(shim)})


def _run(argv: list[str], env: Mapping[str, str]) -> str | None:
    try:
        done = subprocess.run(
            argv,
            env=dict(env),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_COMPILE_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode == 0:
        return None
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f"{argv[0]} failed with exit code {done.returncode}"
