"""What the registry says of a model."""

from __future__ import annotations

from typing import Any

import msgspec

from mlxo.core.options import Options
from mlxo.core.types import Frozen, Message
from mlxo.store.weights import Tensor


class Entry(Frozen, frozen=True, kw_only=True):
    """A row of `list`: `name` in short form, `digest` as 64 hex digits, `size` in bytes.

    `modified_at` is seconds since the epoch.
    """

    name: str
    digest: str
    size: int
    modified_at: float
    format: str
    family: str
    families: tuple[str, ...]
    parameter_size: str
    quantization: str
    context_length: int
    embedding_length: int
    capabilities: tuple[str, ...]
    parent_model: str = ""


class Details(Entry, frozen=True, kw_only=True):
    """All that /api/show tells. `template` is the one in force: the Modelfile's, else the model's own.

    `parameters` and `modelfile` are text; `keep_alive` is seconds, below zero forever.
    """

    template: str | None = None
    system: str | None = None
    options: Options = Options()
    licenses: tuple[str, ...] = ()
    messages: tuple[Message, ...] = ()
    renderer: str | None = None
    parser: str | None = None
    requires: str | None = None
    draft: str | None = None
    keep_alive: float | None = None
    parameters: str = ""
    modelfile: str = ""
    model_info: dict[str, Any] = msgspec.field(default_factory=dict)
    tensors: tuple[Tensor, ...] = ()


class Overrides(Frozen, frozen=True, kw_only=True):
    """What a Modelfile laid over the files of a model. None was not given."""

    template: str | None = None
    system: str | None = None
    options: Options = Options()
    licenses: tuple[str, ...] = ()
    messages: tuple[Message, ...] = ()
