"""The registry: what is on disk. Everything here blocks; the daemon calls it in worker threads.

Layout: core.paths. Reads take no lock, since blobs, manifests and views all land by rename. A mutation takes
store.lock for as long as it moves names, never while it copies data. Several processes may share one home.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from mlxo.core import options
from mlxo.core.errors import Corrupt, InvalidName, ModelNotFound, NotFound, StoreError
from mlxo.core.names import ModelName
from mlxo.core.options import Options
from mlxo.core.paths import Paths
from mlxo.core.types import NGRAM, Layer, Message, ModelSpec
from mlxo.store import gc as cleaning
from mlxo.store import inspect, manifests, show, work
from mlxo.store.blobs import Blobs
from mlxo.store.entries import Details, Entry, Overrides
from mlxo.store.manifests import Manifest, Manifests, ModelConfig, Source, Stored
from mlxo.store.progress import Report
from mlxo.store.views import Views

log = logging.getLogger("mlxo.store")


class Registry:
    """One home's models. Holds no state of its own but paths, so it may be shared by threads."""

    def __init__(self, paths: Paths) -> None:
        self.paths = paths
        self.blobs = Blobs(paths)
        self.manifests = Manifests(paths)
        self.views = Views(paths, self.blobs)

    # ------------------------------------------------------------ reading

    def find(self, name: str) -> Stored:
        """Raises InvalidName; ModelNotFound; Corrupt when its manifest cannot be read."""
        return self.manifests.read(ModelName.parse(name))

    def has(self, name: ModelName) -> bool:
        return self.manifests.has(name)

    def config(self, stored: Stored) -> ModelConfig:
        try:
            return msgspec.json.decode(self.blobs.read(stored.manifest.config.digest), type=ModelConfig)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, NotFound) as e:
            raise Corrupt(
                f"the configuration of {stored.name.short} cannot be read: {e}",
                f"mlxo verify says more; mlxo pull {stored.name.short} fetches it again",
            ) from e

    def files(self, stored: Stored) -> dict[str, Path]:
        """The files of the model's folder: name -> blob."""
        return {str(layer.name): self.blobs.path(layer.digest) for layer in stored.manifest.files}

    def overrides(self, stored: Stored) -> Overrides:
        """Raises Corrupt when a layer is missing or does not decode."""

        def texts(kind: str) -> tuple[str, ...]:
            return tuple(self.blobs.read(layer.digest).decode() for layer in stored.manifest.of(kind))

        try:
            params = [msgspec.json.decode(t, type=dict[str, Any]) for t in texts(manifests.PARAMS)]
            turns = [msgspec.json.decode(t, type=tuple[Message, ...]) for t in texts(manifests.MESSAGES)]
            return Overrides(
                template=next(iter(texts(manifests.TEMPLATE)), None),
                system=next(iter(texts(manifests.SYSTEM)), None),
                options=options.from_json(params[0]) if params else Options(),
                licenses=texts(manifests.LICENSE),
                messages=turns[0] if turns else (),
            )
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, NotFound) as e:
            raise Corrupt(
                f"a layer of {stored.name.short} cannot be read: {e}", "mlxo verify says more"
            ) from e

    def resolve(self, name: str) -> ModelSpec:
        """What a runner needs; makes the view. Raises what `find` does, Corrupt when a file is damaged."""
        stored = self.find(name)
        config = self.config(stored)
        over = self.overrides(stored)
        draft, draft_weights = self._draft(stored.name, config.draft)
        return ModelSpec(
            name=stored.name.short,
            digest=stored.digest,
            path=str(self.views.ensure(stored)),
            weights=_weights(stored),
            context=config.context_length,
            template=over.template,
            system=over.system,
            messages=over.messages,
            options=over.options,
            capabilities=config.capabilities,
            keep_alive=config.keep_alive,
            draft=draft,
            draft_weights=draft_weights,
            parser=config.parser,
        )

    def _draft(self, name: ModelName, wanted: str | None) -> tuple[str | None, int]:
        """DRAFT as a runner takes it, and the bytes of its weights. None where its model is gone or damaged:
        drafts make an answer faster, never different.
        """
        if wanted is None or wanted == NGRAM:
            return wanted, 0
        try:
            stored = self.find(wanted)
            return str(self.views.ensure(stored)), _weights(stored)
        except (InvalidName, ModelNotFound, StoreError) as e:
            log.warning("%s answers without its DRAFT %s: %s", name.short, wanted, e)
            return None, 0

    def list(self) -> list[Entry]:
        """Newest first. A model that cannot be read is left out, with a warning in the log."""
        found = []
        for stored in self.manifests.all()[0]:
            try:
                found.append(self.entry(stored))
            except StoreError as e:
                log.warning("%s is left out of the list: %s", stored.name.short, e)
        return sorted(found, key=lambda entry: entry.modified_at, reverse=True)

    def entry(self, stored: Stored) -> Entry:
        config = self.config(stored)
        return Entry(
            name=stored.name.short,
            digest=stored.digest,
            size=stored.manifest.size,
            modified_at=stored.modified_at,
            format=config.model_format,
            family=config.model_family,
            families=config.model_families,
            parameter_size=config.model_type,
            quantization=config.file_type,
            context_length=config.context_length,
            embedding_length=config.embedding_length,
            capabilities=config.capabilities,
            parent_model=config.parent or "",
        )

    def show(self, name: str) -> Details:
        """Raises what `find` does, and Corrupt when a file is damaged."""
        stored = self.find(name)
        facts = inspect.describe(self.files(stored))
        return show.details(self.entry(stored), self.config(stored), self.overrides(stored), facts)

    def converted(self, source: Source) -> Stored | None:
        """A model whose weights came out of the same conversion, and whose files are all there."""
        for stored in self.manifests.all()[0]:
            try:
                known = self.config(stored).source
            except StoreError:
                continue
            same = known is not None and msgspec.structs.replace(known, origin=source.origin) == source
            if same and all(self.blobs.use(f.digest, f.size) is not None for f in stored.manifest.files):
                return stored
        return None

    # ------------------------------------------------------------ writing

    @contextlib.contextmanager
    def workspace(self) -> Iterator[Path]:
        """A temporary folder; while it is open nothing that this operation has touched is deleted."""
        with work.workspace(self.paths) as folder:
            yield folder

    def commit(self, name: ModelName, config: Layer, layers: tuple[Layer, ...]) -> Stored:
        """Write the manifest and drop what only the name's previous one needed.

        Raises StoreError when a blob went away meanwhile; the name then still means what it did.
        """
        manifest = manifests.make(config, layers)
        with work.locked(self.paths):
            for layer in manifest.blobs:
                if self.blobs.use(layer.digest, layer.size) is None:
                    raise StoreError(
                        f"the blob {layer.digest} went away while {name.short} was made", "try again"
                    )
            return self._write(name, manifest)

    def copy(self, source: str, destination: str) -> None:
        """Raises ModelNotFound. No blob is copied."""
        target = ModelName.parse(destination)
        with work.locked(self.paths):
            self._write(target, self.find(source).manifest)

    def delete(self, name: str) -> None:
        """Remove the name, and what nothing else refers to. Raises ModelNotFound.

        A manifest that cannot be read is removed too; its blobs are left to gc.
        """
        parsed = ModelName.parse(name)
        with work.locked(self.paths):
            try:
                stored = self.manifests.read(parsed)
            except Corrupt:
                self.manifests.remove(parsed)
                return
            self.manifests.remove(parsed)
            self._drop(stored)

    def gc(self, grace: float = cleaning.GRACE) -> cleaning.Freed:
        """Delete unreferenced blobs, views and temporary files older than `grace` seconds."""
        with work.locked(self.paths):
            return cleaning.collect(self.paths, self.blobs, self.manifests, self.views, grace)

    def verify(self, report: Report, cancelled: threading.Event) -> cleaning.Checked:
        """Hash every blob in use. Deletes nothing."""
        return cleaning.verify(self.blobs, self.manifests, report, cancelled)

    def _write(self, name: ModelName, manifest: Manifest) -> Stored:
        """The lock is held."""
        try:
            previous = self.manifests.read(name) if self.manifests.has(name) else None
        except Corrupt:
            previous = None
        written = self.manifests.read(self.manifests.write(name, manifest))
        if previous is not None and previous.digest != written.digest:
            self._drop(previous)
        return written

    def _drop(self, stored: Stored) -> None:
        """The lock is held, the manifest gone: delete its blobs and view unless another name needs them."""
        cleaning.sweep(self.paths, self.blobs, self.manifests, stored.manifest.blobs)
        if all(other.digest != stored.digest for other in self.manifests.all()[0]):
            self.views.remove(stored.digest)


def _weights(stored: Stored) -> int:
    return sum(layer.size for layer in stored.manifest.of(manifests.WEIGHTS))
