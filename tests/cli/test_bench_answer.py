from __future__ import annotations

import json
import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxo.cli.bench_answer import Answer, read, reason
from mlxo.cli.bench_load import Target, prompt
from mlxo.cli.bench_row import cache, percentile, row
from mlxo.core.errors import Forbidden, InvalidRequest, MlxoError, NotFound, ServerUnreachable


def delta(**fields: Any) -> bytes:
    return b"data: " + json.dumps({"choices": [{"delta": fields, "finish_reason": None}]}).encode() + b"\n\n"


USAGE = {"completion_tokens": 9, "prompt_tokens": 20, "prompt_tokens_details": {"cached_tokens": 7}}
EVENTS = [
    b": a comment\n\n",
    delta(role="assistant", content=""),
    delta(content="a"),
    delta(reasoning="b"),
    delta(content="\u00e4\n"),
    b'data:{"choices": [], "usage": ' + json.dumps(USAGE).encode() + b"}\r\n\r\n",
    b"data: [DONE]\n\n",
]
SSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
PLAIN = SSE + b"\r\n" + b"".join(EVENTS)
CHUNKED = (
    SSE
    + b"transfer-encoding: Chunked\r\n\r\n"
    + b"".join(b"%X;x=y\r\n%s\r\n" % (len(e), e) for e in EVENTS)
    + b"0\r\n\r\n"
)


def answer(*parts: bytes) -> Answer:
    """What is read of parts that came at 1.0, 2.0, ..."""
    return read("host", 0.5, [(float(i), p) for i, p in enumerate(parts, 1)])


def json_answer(status: int, body: object) -> bytes:
    return b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\n\r\n" % status + json.dumps(body).encode()


def test_pieces_of_text_have_the_time_of_their_arrival() -> None:
    a = answer(SSE + b"\r\n", *EVENTS)
    assert a.texts == [4.0, 5.0, 6.0]  # neither the comment nor the empty piece
    assert (a.first, a.gaps, a.ended) == (3.5, [1.0, 1.0], 8.0)
    assert (a.tokens, a.prompt_tokens, a.cached, a.counted) == (9, 20, 7, True)
    assert a.pace == 8 / 2.0


@pytest.mark.parametrize("whole", [PLAIN, CHUNKED], ids=["plain", "chunked"])
@given(cuts=st.lists(st.integers(0, len(CHUNKED)), max_size=30))
def test_it_is_the_same_answer_wherever_it_is_cut(whole: bytes, cuts: list[int]) -> None:
    ends = sorted({min(c, len(whole)) for c in cuts} | {len(whole)})
    a = answer(*(whole[i:j] for i, j in zip([0, *ends], ends, strict=False)))
    assert len(a.texts) == 3
    assert (a.tokens, a.prompt_tokens, a.cached) == (9, 20, 7)


def test_a_piece_counts_when_its_line_is_whole() -> None:
    event = delta(content="a")
    assert answer(SSE + b"\r\n", event[:9], event[9:], EVENTS[-1]).texts == [3.0]


def test_without_usage_pieces_are_counted() -> None:
    a = answer(SSE + b"\r\n", delta(content="a"), delta(content="b"), EVENTS[-1])
    assert (a.tokens, a.prompt_tokens, a.cached, a.counted) == (2, None, None, False)


@pytest.mark.parametrize("end", [0, 40, len(PLAIN) - len(EVENTS[-1]) - 1], ids=["nothing", "head", "body"])
def test_an_answer_that_is_cut_short_is_told_from_a_whole_one(end: int) -> None:
    with pytest.raises(EOFError):
        answer(PLAIN[:end])


@pytest.mark.parametrize(
    ("body", "error", "words"),
    [
        (json_answer(404, {"error": {"message": "no model"}}), NotFound, "host answered 404: no model"),
        (json_answer(400, {"detail": "too long"}), InvalidRequest, "host answered 400: too long"),
        (json_answer(401, {"error": "who are you?\x1b[2J"}), Forbidden, "host answered 401: who are you?[2J"),
        (json_answer(500, [1]), MlxoError, "host answered 500: [1]"),
        (json_answer(200, {"choices": []}), MlxoError, "host answers in one piece (application/json)"),
        (SSE + b'\r\ndata: {"error": {"message": "out of memory"}}\n\n', MlxoError, "out of memory"),
        (SSE + b"\r\ndata: nonsense\n\n", MlxoError, "something that is not OpenAI's: nonsense"),
        (SSE + b"\r\ndata: 7\n\n", MlxoError, "something that is not OpenAI's: 7"),
        (SSE + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n", ServerUnreachable, "does not speak HTTP"),
        (b"SSH-2.0-OpenSSH_9.9\r\n", ServerUnreachable, "does not speak HTTP"),
        (b"HTTP/1.1 many\r\n\r\n", ServerUnreachable, "does not speak HTTP"),
    ],
)  # fmt: skip
def test_what_a_server_refuses_is_a_sentence(body: bytes, error: type[MlxoError], words: str) -> None:
    with pytest.raises(error) as caught:
        answer(body)
    assert words in caught.value.message


@pytest.mark.parametrize(
    "chunk", [{}, {"choices": 3}, {"choices": [3]}, {"choices": [{"delta": 3}]}, {"usage": 3}]
)
def test_odd_chunks_are_passed_over(chunk: dict[str, Any]) -> None:
    odd = b"data: " + json.dumps(chunk).encode() + b"\n\n"
    assert answer(SSE + b"\r\n", odd, delta(content="a"), EVENTS[-1]).texts == [3.0]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ConnectionRefusedError(111, "Connect call failed ('127.0.0.1', 9)"), os.strerror(111)),
        (OSError("Multiple exceptions: [Errno 111] Connect ..., [Errno 111] ..."), os.strerror(111)),
        (OSError(-2, "Name or service not known"), "Name or service not known"),
        (TimeoutError(), "no answer in time"),
    ],
)
def test_the_reason_of_a_failed_connection(error: Exception, words: str) -> None:
    assert reason(error) == words


def test_the_address_may_end_in_v1_and_a_key_is_sent() -> None:
    for url in ("http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/"):
        assert (
            Target(url, "m")
            .request("p", 5)
            .startswith(b"POST /v1/chat/completions HTTP/1.1\r\nHost: h:1\r\n")
        )
    raw = Target("http://h/proxy/v1", "m", "secret", (("top_k", 1),)).request("p", 5)
    head, _, body = raw.partition(b"\r\n\r\n")
    assert head.startswith(b"POST /proxy/v1/chat/completions ")
    assert b"\r\nAuthorization: Bearer secret" in head
    sent = json.loads(body)
    assert (sent["max_tokens"], sent["temperature"], sent["stream"], sent["top_k"]) == (5, 0.0, True, 1)
    assert sent["stream_options"] == {"include_usage": True}


def test_prompts_differ_from_their_beginning_and_come_again_from_the_same_seed() -> None:
    texts = [prompt(f"run {i}", 80) for i in range(200)]
    assert len({t[:30] for t in texts}) == 200
    assert texts[7] == prompt("run 7", 80)
    assert len(texts[0].split()) == len(prompt("x", 10).split()) + 70


def told(begun: float, texts: list[float], tokens: int, **rest: Any) -> Answer:
    fields: dict[str, Any] = {"prompt_tokens": 100, "cached": None, "counted": True, **rest}
    return Answer(begun, texts[-1] if texts else begun, texts, tokens, **fields)


def test_a_row_is_of_all_rounds() -> None:
    first = [told(0.0, [1.0, 1.5, 2.0], 5), told(0.0, [2.0, 4.0], 3)]
    second = [told(10.0, [11.0, 12.0], 2), told(10.0, [], 1)]
    r = row([first, second])
    assert (r.streams, r.requests, r.tokens, r.seconds) == (2, 4, 11, 6.0)
    assert (r.ttft_p50, r.ttft_p99, r.gap_p50, r.gap_p99) == (1.0, 2.0, 0.5, 2.0)
    assert r.aggregate == 11 / 6.0
    assert r.each == 1.0  # of 4.0, 1.0 and 1.0
    assert r.prefill == 400 / 3.0  # until the last first text of each round
    assert r.counted


def test_a_model_that_says_nothing_is_an_error_and_not_a_division() -> None:
    with pytest.raises(MlxoError, match="without any text"):
        row([[told(0.0, [], 1)]])


def test_what_the_cache_saves() -> None:
    pairs = [(told(0.0, [4.0], 2), told(10.0, [11.0], 2, cached=90))] * 3
    saved = cache(pairs)
    assert saved is not None
    assert (saved.prompt_tokens, saved.cached_tokens, saved.ratio) == (100, 90, 4.0)
    assert cache([(told(0.0, [], 1), told(0.0, [], 1))]) is None


def test_percentiles_are_values_that_were_measured() -> None:
    assert [percentile([4.0, 1.0, 3.0, 2.0], p) for p in (0, 25, 50, 51, 99, 100)] == [1, 1, 2, 3, 4, 4]
