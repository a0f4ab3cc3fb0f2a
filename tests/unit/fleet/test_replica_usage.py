"""What the replica's middleware makes of the engine's answers."""

import asyncio
import json
from typing import Any

import pytest

from pipeline.fleet.replica_usage import Usage

USAGE = {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13}


def event(**fields: Any) -> bytes:
    return b"data: " + json.dumps(fields, separators=(",", ":")).encode() + b"\n\n"


def piece(word: str, finish: str | None = None, tokens: int = 1) -> bytes:
    usage = {"prompt_tokens": 10, "completion_tokens": tokens, "total_tokens": 10 + tokens}
    return event(choices=[{"index": 0, "delta": {"content": word}, "finish_reason": finish}], usage=usage)


LAST = event(choices=[], usage=USAGE)
DONE = b"data: [DONE]\n\n"
STREAM = [piece("a"), piece("b", tokens=2), piece("c", "stop", tokens=2), LAST, DONE]


def told(question: dict[str, Any], parts: list[bytes], kind: bytes, path: str = "/v1/chat/completions") -> list[Any]:
    """The messages that a client gets for an engine's answer in `parts`."""
    sent: list[Any] = []

    async def engine(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
        for number, part in enumerate(parts, start=1):
            await send({"type": "http.response.body", "body": part, "more_body": number < len(parts)})

    async def receive() -> Any:
        return {"type": "http.request", "body": json.dumps(question).encode()}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(Usage(engine)({"type": "http", "path": path}, receive, send))
    return sent


def streamed(question: dict[str, Any], parts: list[bytes] = STREAM) -> list[bytes]:
    return [message["body"] for message in told(question, parts, b"text/event-stream; charset=utf-8")[1:]]


def test_a_client_that_did_not_ask_gets_no_event_without_choices() -> None:
    """The counts of the whole answer are on the last event that has one."""
    *first, last, done = streamed({"stream": True})
    assert first == STREAM[:2]
    found = json.loads(last.removeprefix(b"data: "))
    assert (found["choices"][0]["finish_reason"], found["usage"]) == ("stop", USAGE)
    assert done == DONE


@pytest.mark.parametrize("options", [{"include_usage": True}, {"include_usage": True, "continuous_usage_stats": True}])
def test_a_client_that_asked_gets_every_event_as_it_is(options: dict[str, bool]) -> None:
    """As the engine itself would answer."""
    assert streamed({"stream": True, "stream_options": options}) == STREAM


@pytest.mark.parametrize("options", [None, {}, {"include_usage": False}, "include_usage", 7])
def test_what_only_looks_like_asking_is_none(options: Any) -> None:
    """Also the words in a prompt."""
    question = {"stream": True, "stream_options": options, "prompt": '"include_usage": true'}
    assert LAST not in streamed(question)


def test_two_choices_each_end_and_all_of_them_arrive() -> None:
    """Only the event before the counts waits for them."""
    parts = [piece("a", "stop"), piece("b"), piece("c", "length"), LAST, DONE]
    found = streamed({"stream": True, "n": 2}, parts)
    assert found[:2] == parts[:2]
    assert json.loads(found[2].removeprefix(b"data: "))["usage"] == USAGE
    assert found[3:] == [DONE]


def test_a_stream_that_breaks_off_keeps_nothing_back() -> None:
    """An error of the engine's after the last word."""
    parts = [piece("a"), piece("b", "stop"), event(error={"message": "gone"}), DONE]
    assert streamed({"stream": True}, parts) == parts


def test_a_whole_answer_says_its_tokens_in_headers() -> None:
    """However many parts it comes in; the body is as it was."""
    body = json.dumps({"choices": [], "usage": USAGE}).encode()
    start, message = told({}, [body[:20], body[20:]], b"application/json")
    assert (b"x-slipway-prompt-tokens", b"10") in start["headers"]
    assert (b"x-slipway-completion-tokens", b"3") in start["headers"]
    assert message["body"] == body


@pytest.mark.parametrize("body", [b"", b"no json", b"[]", b'{"error": {}}', b'{"usage": null}', b'{"usage": {"x": 1}}'])
def test_an_answer_without_counts_is_left_as_it_is(body: bytes) -> None:
    """No header says zero for it, unless it says itself that it counted nothing."""
    start, message = told({}, [body], b"application/json")
    assert message["body"] == body
    assert [value for name, value in start["headers"] if name.startswith(b"x-slipway")] in ([], [b"0", b"0"])


def test_other_paths_are_not_touched() -> None:
    """The engine's health and figures."""
    start, _ = told({}, [json.dumps({"usage": USAGE}).encode()], b"application/json", path="/health")
    assert start["headers"] == [(b"content-type", b"application/json")]
