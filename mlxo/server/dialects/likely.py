"""logprobs as Ollama and OpenAI ask for them and tell them. Shared by the dialects.

Ollama tells every token that the model wrote, marks of reasoning and of calls too; OpenAI those of the text.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from typing import Any

from mlxo.core.errors import InvalidRequest
from mlxo.core.types import Call, Event, TextDelta, ThinkDelta, TokenLogprob

MOST = 20

Json = dict[str, Any]


def top(wanted: bool | None, count: int | None, *, strict: bool) -> int | None:
    """`logprobs` and `top_logprobs` as `Request.logprobs`. Raises InvalidRequest.

    `strict`: alternatives without `logprobs` are refused, as OpenAI does, instead of ignored.
    """
    if not 0 <= (count or 0) <= MOST:
        raise InvalidRequest(f"top_logprobs must be between 0 and {MOST}")
    if strict and count is not None and not wanted:
        raise InvalidRequest("top_logprobs is only allowed when logprobs is true", 'set "logprobs": true')
    return (count or 0) if wanted else None


def every(events: Iterable[Event]) -> list[Json]:
    """Ollama's list: `top_logprobs` is there when alternatives were asked for."""
    found = []
    for event in events:
        if isinstance(event, TextDelta | ThinkDelta | Call):
            for token in event.logprobs:
                told = _told(token)
                if token.top:
                    told["top_logprobs"] = [_told(t) for t in token.top]
                found.append(told)
    return found


def spoken(events: Iterable[Event]) -> list[TokenLogprob]:
    """The tokens of the text."""
    return [t for e in events if isinstance(e, TextDelta) for t in e.logprobs if not t.silent]


def content(tokens: Iterable[TokenLogprob]) -> Json:
    """OpenAI's `choices[].logprobs` of a chat."""
    listed = [{**_told(token), "top_logprobs": [_told(t) for t in token.top]} for token in tokens]
    return {"content": listed, "refusal": None}


class Offsets:
    """OpenAI's `choices[].logprobs` of a completion, piece by piece; `start` is where its text begins."""

    def __init__(self, start: int) -> None:
        self._offset = start
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def tell(self, tokens: Iterable[TokenLogprob]) -> Json:
        """Tokens of one character begin at one place. The likeliest of alternatives that read alike counts.

        Alternatives are None where there are none.
        """
        out: Json = {"tokens": [], "token_logprobs": [], "top_logprobs": None, "text_offset": []}
        for token in tokens:
            out["tokens"].append(_text(token.bytes))
            out["token_logprobs"].append(token.logprob)
            out["text_offset"].append(self._offset)
            self._offset += len(self._decode(token.bytes))
            if token.top:
                names: Json = {}
                for each in (*token.top, token):
                    names.setdefault(_text(each.bytes), each.logprob)
                out["top_logprobs"] = [*(out["top_logprobs"] or ()), names]
        return out


def _told(token: TokenLogprob) -> Json:
    return {"token": _text(token.bytes), "logprob": token.logprob, "bytes": list(token.bytes)}


def _text(spelled: bytes) -> str:
    return spelled.decode(errors="replace")
