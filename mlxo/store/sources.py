"""From a source to the files of a model: an upload, a GGUF file, a package, another model.

A GGUF file, and a folder with QUANTIZE, go through a child process once (`mlxo _job convert`); what it writes
becomes the layers, and a later model from the same source with the same quantisation shares them.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from mlxo.core.errors import InvalidRequest, NotFound
from mlxo.core.process import JobLine, run_job
from mlxo.core.types import Frozen, Layer
from mlxo.modelfile import Quantize
from mlxo.store import disk, folder, gguf, inspect, manifests
from mlxo.store.blobs import Blob, check_digest, hash_file
from mlxo.store.entries import Overrides
from mlxo.store.manifests import JSON, WEIGHTS, ModelConfig, Source, Stored
from mlxo.store.progress import Progress, Report, check
from mlxo.store.registry import Registry
from mlxo.store.views import link_files

CONVERTER = "1"  # raise it when mlxo.jobs.convert writes other bytes for the same source
_PLAIN = ("F32", "F16", "BF16")


class Base(Frozen, frozen=True, kw_only=True):
    """What a model stands on: its files, and what it inherits when it stands on another model.

    `label` is the quantization to show; empty means what the files themselves say.
    """

    files: tuple[Layer, ...]
    label: str = ""
    source: Source | None = None
    parent: str | None = None
    config: ModelConfig | None = None
    over: Overrides = Overrides()


@dataclass(frozen=True, kw_only=True)
class Making:
    """One create or pull under way. `folder` is its temporary folder, `quantize` what was asked for."""

    registry: Registry
    folder: Path
    report: Report
    cancelled: threading.Event
    quantize: Quantize | None = None

    def say(self, status: str) -> None:
        check(self.cancelled)
        self.report(Progress(status=status))

    def layer(self, blob: Blob, media_type: str, name: str | None = None) -> Layer:
        self.say(f"{'using existing' if blob.existed else 'creating new'} layer {blob.digest}")
        return Layer(media_type=media_type, digest=blob.digest, size=blob.size, name=name)


def from_files(making: Making, files: Mapping[str, str], origin: str = "upload") -> Base:
    """Blobs by the names of their files: one GGUF file, or the files of a safetensors folder.

    Raises NotFound for a digest that was not uploaded, InvalidRequest and UnsupportedModel for no model.
    """
    blobs = making.registry.blobs
    names = {folder.check_relative(name): blobs.path(digest) for name, digest in files.items()}
    for name, digest in files.items():
        if blobs.use(digest) is None:
            raise NotFound(f'blob "{digest}" not found', f"upload {name[:80]} again")
    with disk.guard(making.registry.paths.blobs):
        ggufs = [name for name, path in names.items() if gguf.is_gguf(path)]
    if len(ggufs) > 1:
        raise InvalidRequest(
            "a model is made of one GGUF file", "merge a split one with llama-gguf-split --merge"
        )
    if ggufs:
        path = names[ggufs[0]]
        return from_gguf(making, path, check_digest(files[ggufs[0]]), origin)
    if any(name.lower().endswith(".gguf") for name in names):
        raise InvalidRequest("supplied file was not in GGUF format")
    chosen = folder.select(names)
    paths = {manifests.check_file_name(name): names[name] for name in chosen}
    facts = inspect.describe(paths)
    if making.quantize is not None:
        return _quantized(making, paths, facts.file_type, origin)
    layers = []
    for name in paths:
        blob = Blob(check_digest(files[name]), blobs.size(files[name]) or 0, True)
        layers.append(making.layer(blob, _media_type(name), name))
    return Base(files=tuple(layers))


def from_folder(making: Making, path: Path, origin: str) -> Base:
    """A safetensors folder on this machine. Raises what `from_files` does."""
    blobs = making.registry.blobs

    def add(file: Path) -> str:
        return blobs.add_file(file, tick=lambda _: check(making.cancelled)).digest

    return from_files(making, {name: add(file) for name, file in folder.scan(path).items()}, origin)


def from_gguf(making: Making, path: Path, digest: str | None, origin: str) -> Base:
    """`digest` is None for a file outside the registry, which is then hashed."""
    making.say("parsing GGUF")
    label = inspect.gguf_file_type(path)
    if digest is None:
        with disk.guard(path):
            digest, _ = hash_file(path, lambda _: check(making.cancelled))
    if making.quantize is not None:
        label = ""
    return _convert(making, path, _source(making, origin, digest), label)


def from_model(making: Making, stored: Stored) -> Base:
    """Another local model: its layers are referred to, not copied."""
    registry = making.registry
    config = registry.config(stored)
    base = Base(
        files=stored.manifest.files,
        label=config.file_type,
        source=config.source,
        parent=stored.name.short,
        config=config,
        over=registry.overrides(stored),
    )
    if making.quantize is not None:
        quantized = _quantized(making, registry.files(stored), config.file_type, stored.name.short)
        return msgspec.structs.replace(
            base, files=quantized.files, label=quantized.label, source=quantized.source
        )
    for layer in base.files:
        making.layer(Blob(layer.digest, layer.size, True), layer.media_type)
    return base


def _quantized(making: Making, files: Mapping[str, Path], file_type: str, origin: str) -> Base:
    """`files` maps names to blobs."""
    if file_type not in _PLAIN:
        raise InvalidRequest(
            "quantization is only supported for F16, BF16 and F32 models", f"this one is {file_type} already"
        )
    listing = "".join(f"{name} {path.name}\n" for name, path in sorted(files.items()))
    digest = f"sha256:{hashlib.sha256(listing.encode()).hexdigest()}"
    with disk.guard(making.folder):
        source = making.folder / "source"
        source.mkdir()
        link_files(source, {name: str(path.absolute()) for name, path in files.items()})
    return _convert(making, source, _source(making, origin, digest), "")


def _source(making: Making, origin: str, digest: str) -> Source:
    wanted = making.quantize
    words = f"{wanted.mode} {wanted.bits} {wanted.group_size}" if wanted else ""
    return Source(origin=origin, digest=digest, converter=CONVERTER, quantize=words)


def _convert(making: Making, path: Path, source: Source, label: str) -> Base:
    """Run the job, or take the layers that an equal conversion left."""
    registry = making.registry
    known = registry.converted(source)
    if known is not None:
        for layer in known.manifest.files:
            making.layer(Blob(layer.digest, layer.size, True), layer.media_type)
        return Base(files=known.manifest.files, label=label, source=source)
    with disk.guard(making.folder):
        out = making.folder / "out"
        out.mkdir()

    def say(line: JobLine) -> None:
        making.report(Progress(status=line.status, total=line.total, completed=line.completed))

    making.say("converting model")
    quantize = msgspec.structs.asdict(making.quantize) if making.quantize else None
    run_job("convert", {"source": str(path), "out": str(out), "quantize": quantize}, say, making.cancelled)
    layers = []
    for name, written in folder.scan(out).items():
        blob = registry.blobs.add_file(written, link=True, tick=lambda _: check(making.cancelled))
        layers.append(making.layer(blob, _media_type(name), manifests.check_file_name(name)))
    return Base(files=tuple(layers), label=label, source=source)


def _media_type(name: str) -> str:
    return WEIGHTS if folder.is_weights(name) else JSON
