"""Fetching a model by name: from the gallery, or a Hugging Face repository."""

from __future__ import annotations

import threading

from mlxo.core.errors import NotFound
from mlxo.core.names import ModelName
from mlxo.store import gallery, hub, sources
from mlxo.store.create import Recipe, create_from_gallery, finish, unknown
from mlxo.store.progress import Progress, Report
from mlxo.store.registry import Registry


def pull(registry: Registry, name: str, report: Report, cancelled: threading.Event) -> None:
    """Make the local model equal to the one that `name` means elsewhere; what is here already is not fetched.

    Raises NotFound for a name that means nothing, UpstreamError and Forbidden for what a hub says.
    """
    target = ModelName.parse(name)
    modelfile = gallery.find(target)
    if modelfile is not None:
        report(Progress(status="pulling manifest"))
        create_from_gallery(registry, modelfile, report, cancelled)
    elif hub.is_repository(target):
        with registry.workspace() as folder:
            making = sources.Making(registry=registry, folder=folder, report=report, cancelled=cancelled)
            base = sources.from_files(making, hub.fetch(making, target), target.short)
            finish(making, target, base, Recipe())
    else:
        raise NotFound("pull model manifest: file does not exist", unknown(target, registry))
