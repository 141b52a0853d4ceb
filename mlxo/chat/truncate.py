"""Which messages of a chat still fit: Ollama's rule, without its linear search."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mlxo.core.types import Message


def fit(
    messages: Sequence[Message], count: Callable[[Sequence[Message]], int], limit: int
) -> tuple[tuple[Message, ...], int]:
    """The messages to keep, and how many were dropped, so that `count` is at most `limit`; both are tokens.

    The oldest go first. System messages and the last message always stay, even when they alone are too long:
    what then is up to the caller. What stays starts with a question and never with the answer or tool result
    of one that is gone: templates refuse that, and it misleads the model. `count` is asked O(log n) times and
    taken to shrink as messages go.
    """
    if not messages or count(messages) <= limit:
        return tuple(messages), 0
    last = len(messages) - 1
    starts = [i for i, m in enumerate(messages) if i == last or (i > 0 and m.role == "user")]

    def kept(start: int) -> tuple[Message, ...]:
        return tuple(m for i, m in enumerate(messages) if i >= start or m.role == "system")

    low, high = 0, len(starts) - 1  # the earliest start that fits lies in starts[low:high + 1], or none does
    while low < high:
        middle = (low + high) // 2
        if count(kept(starts[middle])) <= limit:
            high = middle
        else:
            low = middle + 1
    keep = kept(starts[low])
    return keep, len(messages) - len(keep)
