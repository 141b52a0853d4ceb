"""What a name means: manifests/<host>/<namespace>/<model>/<tag>, JSON in the shape of a Docker v2 manifest.

Media types are Ollama's where it has one (`application/vnd.ollama.image.*`); weights are files, each a layer
with its own name. A model's digest is the SHA-256 of the manifest's bytes.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from mlxo.core.errors import Corrupt, InvalidName, InvalidRequest, ModelNotFound, StoreError
from mlxo.core.names import ModelName
from mlxo.core.paths import Paths
from mlxo.core.types import Frozen, Layer
from mlxo.store import disk
from mlxo.store.blobs import check_digest

log = logging.getLogger("mlxo.store")

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG = "application/vnd.docker.container.image.v1+json"
WEIGHTS = "application/vnd.mlxo.image.weights"
JSON = "application/vnd.ollama.image.json"
TEMPLATE = "application/vnd.ollama.image.template"
SYSTEM = "application/vnd.ollama.image.system"
PARAMS = "application/vnd.ollama.image.params"
MESSAGES = "application/vnd.ollama.image.messages"
LICENSE = "application/vnd.ollama.image.license"
FILES = (WEIGHTS, JSON)

MAX_BYTES = 4 << 20  # of a manifest; 10 000 shards fit
_FILE_NAME = re.compile(r"(?:1_Pooling/config\.json|[A-Za-z0-9_][A-Za-z0-9_.+ -]{0,199})\Z")


class Source(Frozen, frozen=True, kw_only=True):
    """Where converted weights came from; two models with equal sources share their layers.

    `digest` is that of the GGUF file, or of the list of the folder's files.
    """

    origin: str = msgspec.field(name="from")
    digest: str
    converter: str
    quantize: str = ""


class ModelConfig(Frozen, frozen=True, kw_only=True):
    """The config blob. `model_type` is a size such as "135M", `file_type` a quantization such as "Q4_1"."""

    model_format: str
    model_family: str
    model_families: tuple[str, ...]
    model_type: str
    file_type: str
    context_length: int = 0
    embedding_length: int = 0
    capabilities: tuple[str, ...] = ()
    renderer: str | None = None
    parser: str | None = None
    requires: str | None = None
    draft: str | None = None
    keep_alive: float | None = None
    source: Source | None = None
    parent: str | None = None
    architecture: str
    os: str
    rootfs: dict[str, Any]


class Manifest(Frozen, frozen=True, kw_only=True):
    schema_version: int = msgspec.field(name="schemaVersion")
    media_type: str = msgspec.field(name="mediaType")
    config: Layer
    layers: tuple[Layer, ...] = ()

    @property
    def blobs(self) -> tuple[Layer, ...]:
        return (self.config, *self.layers)

    @property
    def size(self) -> int:
        """Bytes of config and layers."""
        return sum(layer.size for layer in self.blobs)

    @property
    def files(self) -> tuple[Layer, ...]:
        """The layers that are files of the model's folder."""
        return tuple(layer for layer in self.layers if layer.media_type in FILES)

    def of(self, media_type: str) -> tuple[Layer, ...]:
        return tuple(layer for layer in self.layers if layer.media_type == media_type)


class Stored(Frozen, frozen=True, kw_only=True):
    """A manifest as found on disk. `digest` is 64 hex digits, `modified_at` seconds since the epoch."""

    name: ModelName
    manifest: Manifest
    digest: str
    modified_at: float


def make(config: Layer, layers: tuple[Layer, ...]) -> Manifest:
    return Manifest(schema_version=2, media_type=MANIFEST, config=config, layers=layers)


def check_file_name(name: str) -> str:
    """A plain name; one file alone has a folder. Raises InvalidRequest: names come from uploads, hubs and
    manifests.
    """
    if not _FILE_NAME.match(name):
        raise InvalidRequest(f"a model cannot hold a file named {name[:80]!r}")
    return name


def decode(data: bytes) -> Manifest:
    """Raises Corrupt when the bytes are no manifest, or hold a digest or a file name outside the grammar."""
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
        for layer in manifest.blobs:
            check_digest(layer.digest)
            if layer.size < 0 or (layer.media_type in FILES and layer.name is None):
                raise InvalidRequest("a layer without a name or with a negative size")
            if layer.name is not None:
                check_file_name(layer.name)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, InvalidRequest) as e:
        raise Corrupt(f"the manifest cannot be read: {e}") from e
    return manifest


class Manifests:
    """Names to manifests. Reading needs no lock, as a manifest lands by rename; writers hold the store's."""

    def __init__(self, paths: Paths) -> None:
        self._folder = paths.manifests
        self._tmp = paths.tmp

    def path(self, name: ModelName) -> Path:
        """Where `name` lies or would lie; a part that is there in another spelling keeps that spelling."""
        path = self._folder
        for part in (name.host, name.namespace, name.model, name.tag):
            path = path / _spelling(path, part)
        return path

    def locate(self, name: ModelName) -> ModelName:
        """`name` as it is spelled on disk, as far as it is there."""
        return ModelName(*self.path(name).parts[-4:])

    def has(self, name: ModelName) -> bool:
        return self.path(name).is_file()

    def read(self, name: ModelName) -> Stored:
        """Raises ModelNotFound, or Corrupt when the file is no manifest."""
        path = self.path(name)
        with disk.guard(self._folder):
            try:
                with path.open("rb") as f:
                    data = f.read(MAX_BYTES + 1)
                    modified = os.fstat(f.fileno()).st_mtime
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                raise ModelNotFound(f"model '{name.short}' not found", f"mlxo pull {name.short}") from None
        if len(data) > MAX_BYTES:
            raise Corrupt(f"the manifest of {name.short} is larger than {MAX_BYTES} bytes")
        digest = hashlib.sha256(data).hexdigest()
        located = ModelName(*path.parts[-4:])
        return Stored(name=located, manifest=decode(data), digest=digest, modified_at=modified)

    def write(self, name: ModelName, manifest: Manifest) -> ModelName:
        """Returns the name in the spelling it is kept under."""
        path = self.path(name)
        with disk.guard(self._folder):
            disk.write(path, msgspec.json.encode(manifest), self._tmp)
        return ModelName(*path.parts[-4:])

    def remove(self, name: ModelName) -> None:
        """Delete the file, then the folders that are empty without it."""
        path = self.path(name)
        with disk.guard(self._folder):
            path.unlink()
            disk.sync_folder(path.parent)
            for folder in path.parents[:3]:
                try:
                    folder.rmdir()
                except OSError:
                    break

    def names(self) -> Iterator[ModelName]:
        """Every file that lies where a manifest does and whose path is a name; others are not ours."""
        for path in sorted(self._folder.glob("*/*/*/*")):
            parts = path.relative_to(self._folder).parts
            try:
                name = ModelName.parse(f"{parts[0]}/{parts[1]}/{parts[2]}:{parts[3]}")
            except InvalidName:
                continue
            if path.is_file():
                yield name

    def all(self) -> tuple[list[Stored], list[tuple[ModelName, StoreError]]]:
        """Every manifest that reads, and every one that does not with its reason."""
        good: list[Stored] = []
        bad: list[tuple[ModelName, StoreError]] = []
        for name in self.names():
            try:
                good.append(self.read(name))
            except ModelNotFound:
                continue  # deleted since it was listed
            except StoreError as e:
                log.warning("the manifest of %s is skipped: %s", name.short, e)
                bad.append((name, e))
        return good, bad


def _spelling(folder: Path, part: str) -> str:
    """How `part` is spelled in `folder`. Listed even when it opens: a Mac's file system ignores case."""
    with disk.guard(folder):
        try:
            entries = os.listdir(folder)
        except (FileNotFoundError, NotADirectoryError):
            return part
    if part in entries:
        return part
    return next((e for e in sorted(entries) if e.lower() == part.lower()), part)
