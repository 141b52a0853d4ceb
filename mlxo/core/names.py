"""Model names: `[scheme://][host/][namespace/]model[:tag]`, the grammar of Ollama's registry names.

Lengths: host 1 to 255 characters (350 with Ollama, but names become paths, and no file system takes more),
the other parts 1 to 80. A part starts with a letter, a digit or `_`; after that a host may hold
`A-Z a-z 0-9 _ . : -`, a namespace `A-Z a-z 0-9 _ -`, a model and a tag `A-Z a-z 0-9 _ . -`. So no part can
leave its directory.
"""

from __future__ import annotations

import re
from typing import Self

import msgspec

from mlxo.core.errors import InvalidName

DEFAULT_HOST = "registry.ollama.ai"
DEFAULT_NAMESPACE = "library"
DEFAULT_TAG = "latest"
HUB_HOSTS = ("hf.co", "huggingface.co")

# A Hugging Face namespace or repository may hold dots, which Ollama's namespaces may not.
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,254}\Z")
_NAMESPACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}\Z")
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}\Z")


class ModelName(msgspec.Struct, frozen=True, order=True):
    """A full name. Equality is exact; `key` is what names are matched by."""

    host: str
    namespace: str
    model: str
    tag: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Fill the defaults in and check every part. Raises InvalidName."""
        rest = text.strip()
        if "://" in rest:
            rest = rest.partition("://")[2]
        parts = rest.split("/")
        if len(parts) > 3:
            raise InvalidName(f"invalid model name: {_shorten(text)}")
        model, colon, tag = parts[-1].partition(":")
        namespace = parts[-2] if len(parts) > 1 else DEFAULT_NAMESPACE
        host = parts[0] if len(parts) > 2 else DEFAULT_HOST
        tag = tag if colon else DEFAULT_TAG
        name_rule = _PART if host in HUB_HOSTS else _NAMESPACE
        ok = _HOST.match(host) and name_rule.match(namespace) and _PART.match(model) and _PART.match(tag)
        if not ok or ".." in host:
            raise InvalidName(
                f"invalid model name: {_shorten(text)}", "a name looks like qwen3, qwen3:4b or hf.co/org/repo"
            )
        return cls(host, namespace, model, tag)

    @property
    def key(self) -> tuple[str, str, str, str]:
        """Names are matched without regard to case."""
        return (self.host.lower(), self.namespace.lower(), self.model.lower(), self.tag.lower())

    @property
    def short(self) -> str:
        """The printed form: default host and namespace hidden, the tag always shown."""
        if self.host != DEFAULT_HOST:
            return f"{self.host}/{self.namespace}/{self.model}:{self.tag}"
        if self.namespace != DEFAULT_NAMESPACE:
            return f"{self.namespace}/{self.model}:{self.tag}"
        return f"{self.model}:{self.tag}"

    @property
    def full(self) -> str:
        return f"{self.host}/{self.namespace}/{self.model}:{self.tag}"

    @property
    def is_hub(self) -> bool:
        """True when the name points at a Hugging Face repository."""
        return self.host in HUB_HOSTS

    def __str__(self) -> str:
        return self.short


def _shorten(text: str, limit: int = 80) -> str:
    shown = text.encode("unicode_escape").decode("ascii")
    return shown if len(shown) <= limit else shown[:limit] + "..."
