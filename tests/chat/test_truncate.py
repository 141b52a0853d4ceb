from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from mlxo.chat.truncate import fit
from mlxo.core.types import Message


def length(messages: Sequence[Message]) -> int:
    return sum(len(m.content) for m in messages)


def chat(*turns: str) -> list[Message]:
    roles = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    return [Message(role=roles[turn[0]], content=turn) for turn in turns]


def kept(messages: list[Message], limit: int) -> list[str]:
    keep, dropped = fit(messages, length, limit)
    assert dropped == len(messages) - len(keep)
    return [m.content for m in keep]


def test_what_fits_stays_whole() -> None:
    messages = chat("s1", "u1", "a1", "u2")
    assert fit(messages, length, 8) == (tuple(messages), 0)
    assert fit([], length, 0) == ((), 0)


def test_the_oldest_go_first_and_system_messages_stay() -> None:
    messages = chat("s1", "u1", "a1", "s2", "u2", "a2", "u3")
    assert kept(messages, 13) == ["s1", "s2", "u2", "a2", "u3"]
    assert kept(messages, 9) == ["s1", "s2", "u3"]
    assert kept(messages, 1) == ["s1", "s2", "u3"], "even when they alone are too long"


def test_no_answer_or_tool_result_stays_without_its_question() -> None:
    messages = chat("u1", "a1", "t1", "a2", "u2", "a3", "u3")
    assert kept(messages, 13) == ["u2", "a3", "u3"]
    assert kept(chat("u1", "a1", "t1"), 4) == ["t1"], "the last message stays whatever it is"


@given(
    st.lists(st.tuples(st.sampled_from("suat"), st.integers(0, 30)), min_size=1, max_size=40),
    st.integers(0, 400),
)
def test_it_is_the_longest_that_fits(turns: list[tuple[str, int]], limit: int) -> None:
    messages = chat(*(role + "x" * size for role, size in turns))
    asked: list[int] = []

    def count(some: Sequence[Message]) -> int:
        asked.append(1)
        return length(some)

    keep, dropped = fit(messages, count, limit)
    assert len(asked) <= 8
    assert len(keep) + dropped == len(messages)
    assert keep[-1] is messages[-1]
    assert [m for m in keep if m.role == "system"] == [m for m in messages if m.role == "system"]
    last = len(messages) - 1
    starts = [0] + [i for i, m in enumerate(messages) if i == last or (i and m.role == "user")]
    options = [tuple(m for i, m in enumerate(messages) if i >= s or m.role == "system") for s in starts]
    fitting = [o for o in options if length(o) <= limit]
    assert keep == (fitting[0] if fitting else options[-1])
