from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxo.core import errors, wire
from mlxo.core.options import Options
from mlxo.core.types import Chat, Event, Failed, Finished, Message, Request, TextDelta

EVENTS: st.SearchStrategy[Event] = st.one_of(
    st.builds(TextDelta, text=st.text()),
    st.builds(
        Finished,
        reason=st.just("stop"),
        tokens=st.integers(0, 99),
        context=st.lists(st.integers(0, 9)).map(tuple),
    ),
    st.builds(Failed, message=st.text(), code=st.text()),
)
FRAMES: st.SearchStrategy[wire.FromRunner] = st.builds(wire.Emit, id=st.text(), event=EVENTS)


@given(st.lists(st.lists(FRAMES, max_size=4), max_size=4), st.integers(1, 40))
def test_frames_arrive_whole_and_in_order_however_the_bytes_are_cut(
    batches: list[list[wire.FromRunner]], size: int
) -> None:
    data = b"".join(wire.pack(batch) for batch in batches)
    unpacker = wire.from_runner()
    got = [f for i in range(0, len(data), size) for f in unpacker.feed(data[i : i + size])]
    assert got == [frame for batch in batches for frame in batch]


def test_a_request_survives_the_pipe() -> None:
    message = Message(role="user", content="hé", images=(b"\x00\xff",))
    task = Chat(messages=(message,), tools=({"type": "function"},), think="high")
    request = Request(
        id="1", model="m", task=task, options=Options(stop=("a",), seed=3), format={"type": "object"}
    )
    assert list(wire.to_runner().feed(wire.pack([wire.Submit(request=request)]))) == [
        wire.Submit(request=request)
    ]


@pytest.mark.parametrize(
    "data", [struct.pack(">I", 1 << 31), struct.pack(">I", 3) + b"abc", wire.pack([wire.Ping()])]
)
def test_what_is_no_frame_for_this_end_is_an_error(data: bytes) -> None:
    with pytest.raises(errors.RunnerError):
        list(wire.from_runner().feed(data))


def test_every_error_crosses_the_pipe_as_itself() -> None:
    def all_of(kind: type[errors.MlxoError]) -> list[type[errors.MlxoError]]:
        return [kind, *(k for child in kind.__subclasses__() for k in all_of(child))]

    kinds = all_of(errors.MlxoError)
    assert len({k.code for k in kinds}) == len(kinds)
    for kind in kinds:
        error = errors.from_code(kind.code, "what", "next")
        assert type(error) is kind
        assert str(error) == "what (next)"
