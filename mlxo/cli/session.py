"""What one `mlxo run` holds: the model, how to ask it, and the conversation so far."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from mlxo.cli.answer import Answer, summary
from mlxo.cli.client import Client, Json
from mlxo.cli.connect import ensure
from mlxo.cli.progress import Spinner
from mlxo.core.errors import InvalidRequest
from mlxo.core.settings import Settings

THINK_LEVELS = ("low", "medium", "high", "max")


def parse_think(text: str) -> bool | str:
    """Raises InvalidRequest in Ollama's words."""
    if text in ("true", "false"):
        return text == "true"
    if text in THINK_LEVELS:
        return text
    raise InvalidRequest(
        f'invalid value for --think: "{text[:40]}" (must be true, false, high, medium, low, or max)'
    )


@dataclass
class Session:
    """Owned by the main thread. `messages` is what /api/chat is sent; `shown` the answer of /api/show.

    `last` is the answer under way or the last one; `record` whether prompts go to the history file.
    """

    settings: Settings
    model: str
    shown: Json = field(default_factory=dict)
    messages: list[Json] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    format: str | Json | None = None
    think: bool | str | None = None
    keep_alive: str | None = None
    hide_thinking: bool = False
    verbose: bool = False
    wrap: bool = True
    record: bool = True
    last: Answer | None = None

    def client(self) -> Client:
        """The server, started again if it is gone."""
        return ensure(self.settings)

    def request(self, **fields: Any) -> Json:
        """The fields that every request of this session carries, and `fields`."""
        given: Json = {"format": self.format, "keep_alive": self.keep_alive, "options": self.options or None}
        given = {k: v for k, v in given.items() if v is not None}
        if self.think is not None:
            given["think"] = self.think
        return {"model": self.model, **given, **fields}

    def show(self) -> Json:
        """Ask what the model is. Raises NotFound."""
        self.shown = self.client().post("/api/show", {"model": self.model})
        return self.shown

    def load(self) -> None:
        """Bring the model into memory; a spinner turns meanwhile."""
        body: Json = {"model": self.model, "stream": False}
        if self.keep_alive is not None:
            body["keep_alive"] = self.keep_alive
        with Spinner():
            self.client().post("/api/generate", body, timeout=None)

    def answer(self, path: str, body: Json) -> None:
        """Send and print. What came before an error or Ctrl-C stays on the screen, and in `last`."""
        wrap = self.wrap and self.format is None  # a newline inside a string would spoil the JSON
        self.last = answer = Answer(wrap=wrap, hide_thinking=self.hide_thinking)
        with closing(self.client().stream(path, body)) as lines:
            answer.show(lines)
        if self.verbose:
            sys.stderr.write(summary(answer.final))

    def say(self, content: str) -> None:
        """One turn of the conversation. A turn that brought nothing leaves no trace in it."""
        self.messages.append({"role": "user", "content": content})
        self.last = None
        try:
            self.answer("/api/chat", self.request(messages=self.messages))
        finally:
            said: Answer | None = self.last
            if said and (said.text or said.thinking):
                thinking = {"thinking": said.thinking} if said.thinking else {}
                self.messages.append({"role": "assistant", "content": said.text, **thinking})
            else:
                self.messages.pop()

    def set_system(self, text: str) -> None:
        """Append a system message; one that nothing was said after is replaced."""
        message = {"role": "system", "content": text}
        if self.messages and self.messages[-1]["role"] == "system":
            self.messages[-1] = message
        else:
            self.messages.append(message)

    @property
    def system(self) -> str:
        """The system message in force."""
        own = [str(m["content"]) for m in self.messages if m["role"] == "system"]
        return own[-1] if own else str(self.shown.get("system") or "")

    def clear(self) -> None:
        """Forget the conversation, keep the system message."""
        self.messages = [m for m in self.messages if m["role"] == "system"][-1:]

    def capable(self, capability: str) -> bool:
        capabilities: Iterable[str] = self.shown.get("capabilities") or ()
        return capability in capabilities
