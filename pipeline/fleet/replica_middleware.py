"""Puts the version on every answer of a replica: `vllm serve … --middleware pipeline.fleet.replica_middleware.Version`.

Runs inside the engine's server, so it needs nothing but the standard library. The replica speaks for itself, and not
the gateway for it, because only the replica knows which weights it has loaded: after a retry or a fallback the
gateway's idea of where a request went is not where its answer came from.
"""

import os
from collections.abc import Awaitable, Callable, MutableMapping
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


class Version:
    """ASGI middleware."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.headers = [(header, os.environ[variable].encode()) for header, variable in VARIABLES.items()]

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        async def send_with_version(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *self.headers]}
            await send(message)

        await self.app(scope, receive, send_with_version if scope["type"] == "http" else send)
