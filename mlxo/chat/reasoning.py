"""The marks that models put around their reasoning, and whether a prompt ends inside one.

A pair is known by the chat template's text (most templates mention it) or by two tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Container
from typing import NamedTuple


class Markers(NamedTuple):
    start: str
    end: str


PAIRS = (
    Markers("<think>", "</think>"),
    Markers("[THINK]", "[/THINK]"),
    Markers("<seed:think>", "</seed:think>"),
    Markers("<longcat_think>", "</longcat_think>"),
    Markers("<|think:start|>", "<|think:end|>"),
    Markers("<|channel>thought", "<channel|>"),
    Markers("<|START_THINKING|>", "<|END_THINKING|>"),
    Markers("<think:opensource>", "</think:opensource>"),
    Markers("<mm:think>", "</mm:think>"),
    Markers("◁think▷", "◁/think▷"),
)
# Marks that some models put around the answer itself.
_WRAPPERS = (
    "<|START_RESPONSE|>",
    "<|END_RESPONSE|>",
    "<|START_TEXT|>",
    "<|END_TEXT|>",
    "<response>",
    "</response>",
)


def find(template: str | None, vocabulary: Container[str] = ()) -> Markers | None:
    """The pair that this model uses, or None for a model that does not reason in the open.

    The end mark alone is enough in a template: some only cut earlier reasoning out of the history.
    """
    for pair in PAIRS:
        if template and pair.end in template:
            return pair
    for pair in PAIRS:
        if pair.start in vocabulary and pair.end in vocabulary:
            return pair
    return None


def wrappers(template: str | None) -> tuple[str, ...]:
    """The marks around an answer that are no text, of a model with this chat template."""
    if template is None:
        return ()
    granite = "<response>" in template and "<think>" in template
    return tuple(w for w in _WRAPPERS if w in template and (granite or "response>" not in w))


def inside(prompt: str, markers: Markers | None, prefill: bool = False) -> bool:
    """Whether generation after `prompt` starts inside a think block.

    Templates that open the block end with its mark. With `prefill` the last message is the model's own, so
    text may follow the mark; otherwise a mark with text behind it is only something that a user wrote.
    """
    if markers is None:
        return False
    before, mark, tail = prompt.rpartition(markers.start)
    del before
    return bool(mark) and markers.end not in tail and (prefill or not tail.strip())
