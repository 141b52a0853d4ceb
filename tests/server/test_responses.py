"""/v1/responses: its store, its items as messages, and over HTTP with fake runners."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mlxo.core.errors import InvalidRequest, NotFound
from mlxo.core.types import Function, Message, ToolCall
from mlxo.server.dialects.openai_responses_items import messages, named
from mlxo.server.responses import Responses
from tests.server.conftest import Api, Stage
from tests.server.test_v1_http import frames

PATH = "/v1/responses"


def kept(id_: str, text: str = "") -> dict[str, Any]:
    return {"id": id_, "status": "completed", "output": [{"id": f"msg_{id_}", "text": text}]}


def test_the_store_forgets_what_was_used_least_recently() -> None:
    store = Responses(count=2)
    store.keep(kept("a"), [{"id": "i"}])
    store.keep(kept("b"), [])
    assert store.turns("a") == [{"id": "i"}, {"id": "msg_a", "text": ""}]
    store.keep(kept("c"), [])
    with pytest.raises(NotFound):
        store.get("b")
    assert store.get("a")["id"] == "a"
    assert [store.item(i) is not None for i in ("i", "msg_a", "msg_b", "msg_c")] == [True, True, False, True]
    store.delete("a")
    assert store.item("i") is None
    with pytest.raises(NotFound):
        store.delete("a")


def test_the_store_has_room_for_so_many_bytes() -> None:
    store = Responses(size=1000)
    for i in range(9):
        store.keep(kept(str(i), "x" * 300), [])
    held = [i for i in range(9) if store._kept.get(str(i))]
    assert held == [7, 8]
    store.keep(kept("large", "x" * 2000), [])
    assert store.get("8")
    with pytest.raises(NotFound):
        store.get("large")
    for i in held:
        store.delete(str(i))
    assert store._size == 0


def test_only_what_is_being_made_can_be_cancelled() -> None:
    store = Responses()
    store.keep(kept("a"), [])
    with pytest.raises(InvalidRequest, match="completed"):
        store.cancel("a")
    with pytest.raises(NotFound):
        store.cancel("b")


def test_items_of_one_turn_are_one_message() -> None:
    items: list[dict[str, Any]] = [
        {"role": "developer", "content": "d"},
        {
            "role": "user",
            "content": [{"type": "input_text", "text": "u"}, {"type": "input_text", "text": "v"}],
        },
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "t"}], "content": None},
        {"role": "assistant", "content": "a"},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"x": 1}'},
        {"type": "function_call", "call_id": "c2", "name": "g", "arguments": ""},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "r"}]},
        {"type": "reasoning", "summary": []},
    ]
    calls = (
        ToolCall(function=Function(name="f", arguments={"x": 1}), id="c1"),
        ToolCall(function=Function(name="g", index=1), id="c2"),
    )
    numbers = iter(range(9))
    items = [named(i, "input", lambda _: None, lambda prefix: f"{prefix}{next(numbers)}") for i in items]
    assert [i["id"] for i in items] == ["msg_0", "msg_1", "rs_2", "msg_3", "fc_4", "fc_5", "fco_6", "rs_7"]
    assert items[3]["content"] == [{"type": "output_text", "text": "a", "annotations": []}]
    assert messages(items) == [
        Message(role="system", content="d"),
        Message(role="user", content="u\nv"),
        Message(role="assistant", content="a", thinking="t", tool_calls=calls),
        Message(role="tool", content="r", tool_call_id="c2", tool_name="g"),
    ]


@pytest.mark.parametrize(
    "item",
    [
        {"type": "computer_call"},
        {"type": 5},
        {"role": 5, "content": "x"},
        {"role": "user", "content": 5},
        {"role": "user", "content": [{"type": "input_file"}]},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "nothing"},
        {"type": "function_call", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "output": "x"},
        {"id": "msg_unknown"},
    ],
)
def test_items_that_are_refused(item: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        named(item, "input[0]", lambda _: None, lambda prefix: prefix)


@pytest.mark.parametrize(("verb", "said"), [("break", "the model failed"), ("die", "last words")])
async def test_a_stream_that_fails_midway_says_so_and_is_kept(api: Api, verb: str, said: str) -> None:
    status, text, _ = await api.call("POST", PATH, {"model": "tiny", "input": f"{verb} a b", "stream": True})
    last = frames(text)[-1]
    assert (status, last["type"], last["response"]["status"]) == (200, "response.failed", "failed")
    assert said in last["response"]["error"]["message"]
    _, value, _ = await api.call("GET", f"{PATH}/{last['response']['id']}")
    assert value == last["response"]


async def test_errors_have_openais_shape(api: Api) -> None:
    for method, path in (
        ("GET", "/none"),
        ("DELETE", "/none"),
        ("POST", "/none/cancel"),
        ("GET", "/none/input_items"),
    ):
        status, value, _ = await api.call(method, PATH + path)
        assert (status, value["error"]["type"]) == (404, "not_found_error")
    status, value = await api.post(PATH, {"model": "nobody", "input": "x"})
    assert (status, value["error"]["code"]) == (404, "model_not_found")
    status, value = await api.post(PATH, {"model": "tiny", "input": "refuse so it is", "stream": True})
    assert (status, value["error"]["message"]) == (400, "so it is")


async def test_pages_of_items(api: Api) -> None:
    items = [{"role": "user", "content": f"say {i}", "id": f"m{i}"} for i in range(5)]
    _, made = await api.post(PATH, {"model": "tiny", "input": items})
    path = f"{PATH}/{made['id']}/input_items"

    async def page(query: str) -> tuple[list[str], bool]:
        _, value, _ = await api.call("GET", path + query)
        return [i["id"] for i in value["data"]], value["has_more"]

    assert await page("") == (["m4", "m3", "m2", "m1", "m0"], False)
    assert await page("?order=asc&limit=2") == (["m0", "m1"], True)
    assert await page("?order=asc&limit=3&after=m1") == (["m2", "m3", "m4"], False)
    assert await page("?after=m0") == ([], False)
    for wrong, status in (("?limit=0", 400), ("?limit=x", 400), ("?order=up", 400), ("?after=m9", 404)):
        assert (await api.call("GET", path + wrong))[0] == status
    assert (await api.call("GET", f"{PATH}/{made['id']}?stream=true"))[0] == 400


async def test_what_was_cancelled_stays_so_and_its_row_is_freed(api: Api, stage: Stage) -> None:
    async with api.open(PATH, {"model": "tiny", "input": "forever x", "stream": True}) as response:
        while not (line := await response.content.readline()).startswith(b"data: "):
            pass
        id_ = json.loads(line[6:])["response"]["id"]
        _, value, _ = await api.call("GET", f"{PATH}/{id_}")
        assert value["status"] == "in_progress"
        status, value, _ = await api.call("POST", f"{PATH}/{id_}/cancel")
        assert (status, value["status"]) == (200, "cancelled")
        rest = frames((await response.read()).decode())
        assert (rest[-1]["type"], rest[-1]["response"]["status"]) == ("response.failed", "cancelled")
    await stage.next("cancel")
    _, value, _ = await api.call("GET", f"{PATH}/{id_}")
    assert value["status"] == "cancelled"
