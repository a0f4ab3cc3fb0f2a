"""Says of every answer how many tokens it took, for the gateway's log: a middleware of the engine's server.

A whole answer gets the counts of its `usage` as headers. In a stream every event has them already, since the engine
runs with `--enable-force-include-usage`; but then the engine also ends each stream with an event that has no choices,
which clients that did not ask for it trip over. For them its counts go into the event before, and it is left out.

Runs inside the engine's server, so it needs nothing but the standard library.
"""

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

COMPLETION_PATHS = ("/v1/chat/completions", "/v1/completions")
HEADERS = {"prompt_tokens": b"x-slipway-prompt-tokens", "completion_tokens": b"x-slipway-completion-tokens"}
EVENT = b"data: "
ENDS_CHOICE = b'"finish_reason":"'
NO_CHOICES = b'"choices":[]'
ASKS = b"include_usage"


class Usage:
    """ASGI middleware."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] in COMPLETION_PATHS:
            answer = Answer(send)
            await self.app(scope, answer.heard(receive), answer.said)
        else:
            await self.app(scope, receive, send)


class Answer:
    """One request and what becomes of its answer."""

    def __init__(self, send: Send) -> None:
        self.send = send
        self.question = b""
        self.start: Message | None = None
        """Kept until the body is whole; None once it was sent."""
        self.body = b""
        self.streams = False
        self.asked = False
        """The client wants the last event, too."""
        self.held: bytes | None = None
        """An event that ends a choice: the counts of the whole answer may follow."""

    def heard(self, receive: Receive) -> Receive:
        """`receive`, which also keeps the question."""

        async def hear() -> Message:
            message = await receive()
            if message["type"] == "http.request":
                self.question += message.get("body", b"")
            return message

        return hear

    async def said(self, message: Message) -> None:
        """Takes what the engine says, and sends what the client is told."""
        if message["type"] == "http.response.start":
            kind = dict(message.get("headers", ())).get(b"content-type", b"")
            self.streams = kind.startswith(b"text/event-stream")
            self.asked = self.streams and asks_for_usage(self.question)
            if self.streams:
                await self.send(message)
            else:
                self.start = message
        elif message["type"] != "http.response.body":
            await self.send(message)
        elif self.streams:
            await self._event(message)
        else:
            await self._part(message)

    async def _part(self, message: Message) -> None:
        self.body += message.get("body", b"")
        if message.get("more_body"):
            return
        start = self.start or {}
        await self.send({**start, "headers": [*start.get("headers", ()), *counts(self.body)]})
        await self.send({**message, "body": self.body})

    async def _event(self, message: Message) -> None:
        event: bytes = message.get("body", b"")
        if not self.asked:
            held, self.held = self.held, None
            if NO_CHOICES in event and held is not None:
                await self.send({**message, "body": with_usage(held, event), "more_body": True})
                return
            if held is not None:
                await self.send({**message, "body": held, "more_body": True})
            if ENDS_CHOICE in event and message.get("more_body"):
                self.held = event
                return
        await self.send(message)


def asks_for_usage(question: bytes) -> bool:
    """Whether a request has `stream_options.include_usage`."""
    if ASKS not in question:
        return False
    try:
        options = json.loads(question).get("stream_options")
    except (ValueError, AttributeError):
        return False
    return isinstance(options, dict) and bool(options.get("include_usage"))


def counts(body: bytes) -> list[tuple[bytes, bytes]]:
    """Headers with the tokens of a whole answer; none if it is an error."""
    try:
        usage = json.loads(body)["usage"]
        return [(header, str(int(usage.get(name) or 0)).encode()) for name, header in HEADERS.items()]
    except (ValueError, KeyError, TypeError, AttributeError):
        return []


def with_usage(event: bytes, last: bytes) -> bytes:
    """`event` with the counts of `last`, which is left out; both in that order where one of them is something else."""
    try:
        found = json.loads(event.removeprefix(EVENT))
        found["usage"] = json.loads(last.removeprefix(EVENT))["usage"]
    except (ValueError, KeyError, TypeError):
        return event + last
    return EVENT + json.dumps(found, separators=(",", ":")).encode() + b"\n\n"
