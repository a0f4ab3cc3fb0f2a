"""Short requests that the rollout sends itself: to a replica, to see that it is ready, and through the gateway, to
judge a version that too few clients use.
"""

import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import httpx

from pipeline.fleet.doors.replica_door import HEADER as DOOR_HEADER
from pipeline.fleet.envoy_routes import CANARY_HEADER

MAX_TOKENS = 8
MAX_ROWS = 10_000
MAX_ANSWER_TOKENS = 64
"""An answer longer than that is not waited for."""
TIMEOUT_S = 60.0
FIXED_PROMPTS = ("Hello",)
"""For a version whose predictions cannot be read."""


@dataclass(frozen=True)
class Prompt:
    """What a probe asks."""

    text: str
    """The user's message, or all messages as JSON."""
    reference: str | None = None
    """The right answer; None if the answer is not to be scored: it is not known, or was asked for before."""
    max_tokens: int = MAX_TOKENS

    @property
    def messages(self) -> list[Any]:
        if self.text.startswith("[{"):
            try:
                found = json.loads(self.text)
            except ValueError:
                found = None
            if isinstance(found, list) and all(isinstance(one, dict) and "role" in one for one in found):
                return found
        return [{"role": "user", "content": self.text}]


@dataclass(frozen=True)
class Answer:
    """What came back from one probe."""

    failure: str = ""
    """Why it is no good; empty if it is."""
    status: int = 0
    """HTTP status; 0 if there was no answer."""
    connected: bool = True
    """False if there was nobody to ask."""
    version: str | None = None
    generation: str | None = None
    duration_s: float = 0.0
    wrong_version: bool = False
    first_token_s: float | None = None
    """From the request to the first token, of a streamed answer."""
    inter_token_s: float | None = None
    """Between two tokens, on average; None with fewer than two."""
    text: str = ""
    """Of a streamed answer."""

    @property
    def good(self) -> bool:
        return not self.failure

    def expecting(self, version: str, generation: str) -> "Answer":
        """The same answer, which is a failure if another version gave it."""
        if (self.version, self.generation) == (version, generation):
            return self
        failure = (
            f"it answers as version {self.version} of generation {self.generation},"
            f" expected version {version} of generation {generation}"
        )
        return replace(self, failure=self.failure or failure, wrong_version=True)


def ask(
    client: httpx.Client,
    model: str,
    prompt: str,
    *,
    door: str,
    max_tokens: int = MAX_TOKENS,
    canary: str | None = None,
) -> Answer:
    """One chat completion.

    Args:
        door: the secret that opens a replica (`doors.replica_door.secret`); "" where the gateway is asked.
        canary: "always" or "never", which the gateway honours for those who may choose.
    """
    headers = {**({DOOR_HEADER: door} if door else {}), **({CANARY_HEADER: canary} if canary else {})}
    body = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": max_tokens,
        "temperature": 0,
    }
    started = time.monotonic()
    try:
        response = client.post("/v1/chat/completions", json=body, headers=headers)
    except httpx.HTTPError as error:
        return Answer(
            failure=f"{type(error).__name__}: {error}",
            connected=not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout),
            duration_s=time.monotonic() - started,
        )
    return Answer(
        failure=_failure(response, model),
        status=response.status_code,
        version=response.headers.get("x-slipway-version"),
        generation=response.headers.get("x-slipway-generation"),
        duration_s=time.monotonic() - started,
    )


def ask_streamed(client: httpx.Client, model: str, prompt: Prompt, *, canary: str) -> Answer:
    """One chat completion as a stream of tokens, with the moments at which they came."""
    body = {
        "model": model,
        "messages": prompt.messages,
        "max_tokens": prompt.max_tokens,
        "temperature": 0,
        "stream": True,
    }
    started = time.monotonic()
    moments: list[float] = []
    try:
        with client.stream("POST", "/v1/chat/completions", json=body, headers={CANARY_HEADER: canary}) as response:
            said = {
                "status": response.status_code,
                "version": response.headers.get("x-slipway-version"),
                "generation": response.headers.get("x-slipway-generation"),
            }
            if response.status_code != 200:
                response.read()
                failure, text = _failure(response, model), ""
            else:
                failure, text = _read_stream(response, model, moments)
    except httpx.HTTPError as error:
        return Answer(
            failure=f"{type(error).__name__}: {error}",
            connected=not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout),
            duration_s=time.monotonic() - started,
        )
    return Answer(
        failure=failure,
        **said,
        duration_s=time.monotonic() - started,
        first_token_s=moments[0] - started if moments else None,
        inter_token_s=(moments[-1] - moments[0]) / (len(moments) - 1) if len(moments) > 1 else None,
        text=text,
    )


def _read_stream(response: httpx.Response, model: str, moments: list[float]) -> tuple[str, str]:
    """What is wrong with it, and the text. Notes when each token came."""
    pieces: list[str] = []
    for line in response.iter_lines():
        if not line.startswith("data:"):
            continue
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            return "", "".join(pieces)
        try:
            event = json.loads(data)
            named, choices = event["model"], event["choices"]
            piece = choices[0]["delta"].get("content") if choices else None
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            return f"the stream has an event that is no chat completion: {data[:200]}", "".join(pieces)
        if named != model:
            return f"the answer names model {named!r}, expected {model!r}", "".join(pieces)
        if piece:
            moments.append(time.monotonic())
            pieces.append(piece)
    return "the stream broke off before its end", "".join(pieces)


def _failure(response: httpx.Response, model: str) -> str:
    if response.status_code != 200:
        return f"HTTP {response.status_code}: {response.text[:200].strip()}"
    try:
        body = response.json()
        named, choices = body["model"], body["choices"]
    except (ValueError, KeyError, TypeError):
        return f"the answer is no chat completion: {response.text[:200].strip()}"
    if named != model:
        return f"the answer names model {named!r}, expected {model!r}"
    return "" if choices else "the answer has no choices"


def prompts_of(predictions_path: Path | None, *, max_tokens: int, seed: int) -> Iterator[Prompt]:
    """Prompts for ever: the shorter half of those in the version's own evaluation, else a fixed one.

    Shorter ones, because a prompt that fills the model's length is refused whatever the version. Each row's reference
    is given once, in an order that `seed` draws: a row that is scored again would be no new evidence.

    Args:
        max_tokens: what an answer may take; rows are scored up to `MAX_ANSWER_TOKENS`.
    """
    rows: list[dict[str, Any]] = []
    if predictions_path is not None and predictions_path.is_file():
        with predictions_path.open() as lines:
            rows = [row for row in map(json.loads, islice(lines, MAX_ROWS)) if row["loss"] is not None]
    rows = sorted(rows, key=lambda row: len(row["prompt"]))[: (len(rows) + 1) // 2]
    random.Random(seed).shuffle(rows)
    if max_tokens <= MAX_ANSWER_TOKENS:
        yield from (Prompt(row["prompt"], row["reference"], max_tokens) for row in rows)
    yield from cycle([Prompt(row["prompt"]) for row in rows] or [Prompt(text) for text in FIXED_PROMPTS])
