"""A replica without a model: `python stand_in_replica.py PORT BEHAVIOUR.json [HOST]`.

Speaks as much of OpenAI's protocol as the fleet needs, streams included, behind the real middleware. The
behaviour file is read anew for every request, so that a test changes a version's manners while it runs:

    {"error_rate": 0.5, "status": 500, "delay_s": 0.2, "claims": "9", "crash": true, "unhealthy": true, "chunks": 20,
     "chunk_s": 0.1, "answers": {"a prompt": "its answer"}, "accuracy": 0.9, "echo": true, "says": "9", "rubbish": true,
     "spin_s": 20}

With `echo` the answer's text is the request as the replica saw it; with `spin_s` it computes before each answer, and
does nothing else meanwhile.
"""

import asyncio
import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

import uvicorn
from stand_in_metrics import ITL, TTFT, WHOLE, Metrics

from pipeline.fleet.replica_middleware import Door, Version
from pipeline.fleet.replica_usage import Usage

BEHAVIOUR_PATH = Path(sys.argv[2])
OWN_PATH = BEHAVIOUR_PATH.with_name(f"port-{sys.argv[1]}.json")
"""Of this replica alone."""
METRICS = Metrics()


def behaviour() -> dict[str, Any]:
    paths = [path for path in (BEHAVIOUR_PATH, OWN_PATH) if path.exists()]
    return {key: value for path in paths for key, value in json.loads(path.read_bytes()).items()}


class Manners(Version):
    """Says what the behaviour file wants it to say."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        says = behaviour().get("says", os.environ["SLIPWAY_REPLICA_VERSION"])
        self.headers = [(name, says.encode() if name == b"x-slipway-version" else v) for name, v in self.headers]
        await super().__call__(scope, receive, send)


async def answer(send: Any, status: int, body: dict[str, Any]) -> None:
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(body).encode()})


async def answer_text(send: Any, text: str) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": text.encode()})


def words_of(request: dict[str, Any], manners: dict[str, Any]) -> list[str]:
    """What it answers: what it knows, wrong as often as it is told to be; else words without meaning."""
    messages = request.get("messages") or [{"content": ""}]
    known = manners.get("answers", {}).get(messages[-1]["content"])
    if known is not None:
        return [known if random.random() < manners.get("accuracy", 1.0) else "something else"]
    return [f"word{index} " for index in range(manners.get("chunks", request.get("max_tokens", 20)))]


async def stream(send: Any, request: dict[str, Any], manners: dict[str, Any]) -> None:
    """Server-sent events, one word each, with counts in each and a last one that has nothing else, as vLLM's are;
    slowly unless the request is for few tokens, as probes are."""
    headers = [(b"content-type", b"text/event-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    pause_s = manners.get("chunk_s", 0.002 if "max_tokens" in request else 0.1)
    words = words_of(request, manners)
    for index, word in enumerate(words):
        METRICS.tokens += 1
        if index:
            METRICS.times_s[ITL].append(pause_s)
        finish = "stop" if index == len(words) - 1 else None
        choice = {"index": 0, "delta": {"content": word}, "finish_reason": finish}
        await say(send, {"model": request["model"], "choices": [choice], "usage": used(index + 1)})
        await asyncio.sleep(pause_s)
    await say(send, {"model": request["model"], "choices": [], "usage": used(len(words))})
    await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})


async def say(send: Any, event: dict[str, Any]) -> None:
    text = json.dumps(event, separators=(",", ":"))
    await send({"type": "http.response.body", "body": f"data: {text}\n\n".encode(), "more_body": True})


def used(tokens: int) -> dict[str, int]:
    """As an engine counts: every prompt here has ten tokens."""
    return {"prompt_tokens": 10, "completion_tokens": tokens, "total_tokens": 10 + tokens}


def seen(scope: Any) -> dict[str, Any]:
    """Method, path and headers."""
    headers = [(name.decode(), value.decode()) for name, value in scope["headers"]]
    return {"method": scope["method"], "path": scope["path"], "headers": headers}


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        return
    manners = behaviour()
    over = time.monotonic() + manners.get("spin_s", 0.0)
    while time.monotonic() < over:
        pass
    if scope["path"] == "/health":
        await answer(send, 503 if manners.get("unhealthy") else 200, {})
        return
    if scope["path"] == "/metrics":
        await answer_text(send, METRICS.text())
        return
    began = time.monotonic()
    METRICS.running += 1
    try:
        await complete(scope, receive, send, manners)
    finally:
        METRICS.running -= 1
        METRICS.finished += 1
        METRICS.times_s[WHOLE].append(time.monotonic() - began)


async def complete(scope: Any, receive: Any, send: Any, manners: dict[str, Any]) -> None:
    """One completion."""
    began = time.monotonic()
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    request = json.loads(body)
    await asyncio.sleep(manners.get("delay_s", 0.0))
    METRICS.times_s[TTFT].append(time.monotonic() - began)
    if random.random() < manners.get("error_rate", 0.0):
        await answer(send, manners.get("status", 500), {"error": {"message": "told to fail"}})
    elif manners.get("rubbish"):
        await answer(send, 200, {"weather": "fine"})
    elif request.get("stream"):
        await stream(send, request, manners)
    else:
        client = dict(scope["headers"]).get(b"x-client-id", b"").decode()
        content = json.dumps(seen(scope)) if manners.get("echo") else f"client {client}"
        message = {"role": "assistant", "content": content}
        choices = [{"index": 0, "message": message}]
        await answer(send, 200, {"model": request["model"], "choices": choices, "usage": used(2)})


if __name__ == "__main__":
    manners = behaviour()
    if manners.get("crash"):
        sys.exit("told to crash")
    if "claims" in manners:
        os.environ["SLIPWAY_REPLICA_VERSION"] = manners["claims"]
    host = (*sys.argv[3:], "127.0.0.1")[0]
    uvicorn.run(Door(Manners(Usage(app))), host=host, port=int(sys.argv[1]), log_level="warning", lifespan="off")
