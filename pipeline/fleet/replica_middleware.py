"""Puts the version on every answer of a replica (`Version`), and answers nobody who does not know the secret (`Door`).

    vllm serve … --middleware pipeline.fleet.replica_middleware.Version

It also notes the request's id for the log (`pipeline.fleet.replica_logging`).

Runs inside the engine's server, so it needs nothing but the standard library. The replica speaks for itself, and not
the gateway for it, because only the replica knows which weights it has loaded: after a retry or a fallback the
gateway's idea of where a request went is not where its answer came from.
"""

import hashlib
import hmac
import os
from collections.abc import Awaitable, Callable, MutableMapping
from contextvars import ContextVar
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

VARIABLES = {
    b"x-slipway-model": "SLIPWAY_REPLICA_MODEL",
    b"x-slipway-version": "SLIPWAY_REPLICA_VERSION",
    b"x-slipway-generation": "SLIPWAY_REPLICA_GENERATION",
}
"""Set by the replica's program; read here, in the engine's process, where `pipeline.settings` is not loaded."""


LOG_PROMPTS = "SLIPWAY_REPLICA_LOG_PROMPTS"
REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")
"""Of the request that is being answered, as the gateway gave it."""


def identity() -> dict[str, str]:
    """What this replica is, as the lines of its log say it; empty for a process that is no replica."""
    named = {header.decode().removeprefix("x-slipway-"): variable for header, variable in VARIABLES.items()}
    return {name: os.environ[variable] for name, variable in named.items() if variable in os.environ}


def may_log_prompts() -> bool:
    """Whether somebody asked for clients' text in the log."""
    return os.environ.get(LOG_PROMPTS) == "1"


class Version:
    """ASGI middleware."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.headers = [(header, os.environ[variable].encode()) for header, variable in VARIABLES.items()]

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        named = dict(scope.get("headers", ())).get(b"x-request-id", b"")
        REQUEST_ID.set(named.decode("latin-1"))

        async def send_with_version(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *self.headers]}
            await send(message)

        await self.app(scope, receive, send_with_version if scope["type"] == "http" else send)


DOOR_VARIABLE = "SLIPWAY_REPLICA_DOOR"
"""The SHA-256 of the secret, in hexadecimal."""
DOOR_HEADER = b"x-slipway-door"
OPEN_PATHS = ("/health", "/metrics")
"""What supervisors and Prometheus ask for: no prompt and no answer is in it."""


class Door:
    """ASGI middleware: everything but health and figures is for those who know the fleet's secret."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.digest = os.environ[DOOR_VARIABLE]

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope["path"] in OPEN_PATHS or self._opens(scope):
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            headers = [(b"content-type", b"application/json")]
            await send({"type": "http.response.start", "status": 403, "headers": headers})
            await send({"type": "http.response.body", "body": REFUSAL})

    def _opens(self, scope: Message) -> bool:
        given = [value for name, value in scope.get("headers", ()) if name == DOOR_HEADER]
        return len(given) == 1 and hmac.compare_digest(hashlib.sha256(given[0]).hexdigest(), self.digest)


REFUSAL = b'{"error":{"message":"replicas answer the gateway alone: ask it","code":"ask_the_gateway"}}'
