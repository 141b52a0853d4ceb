"""Which engine a model gets."""

from __future__ import annotations

from mlxo.core.types import ModelSpec
from mlxo.engine.embedder import Embedder
from mlxo.engine.engine import Engine


def start(spec: ModelSpec, rows: int, context: int, cache: str, cache_size: int) -> Engine | Embedder:
    """The arguments are those of `Engine`. Raises LoadFailed."""
    if "embedding" in spec.capabilities:
        return Embedder(spec, context)
    return Engine(spec, rows, context, cache, cache_size)
