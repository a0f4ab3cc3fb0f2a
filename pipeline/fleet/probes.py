"""Short requests that the rollout sends itself: to a replica, to see that it is ready, and through the gateway, to
judge a version that too few clients use.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path

import httpx

from pipeline.fleet.envoy_routes import CANARY_HEADER

MAX_TOKENS = 8
MAX_ROWS = 400
TIMEOUT_S = 60.0
FIXED_PROMPTS = ("Hello",)
"""For a version whose predictions cannot be read."""


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
    client: httpx.Client, model: str, prompt: str, *, max_tokens: int = MAX_TOKENS, canary: str | None = None
) -> Answer:
    """One chat completion. `canary` is "always" or "never", which the gateway honours for the probes' key alone."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": max_tokens,
        "temperature": 0,
    }
    started = time.monotonic()
    try:
        response = client.post("/v1/chat/completions", json=body, headers={CANARY_HEADER: canary} if canary else {})
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


def prompts_of(predictions_path: Path | None) -> Iterator[str]:
    """Prompts for ever: the shorter half of those in the version's own evaluation, else a fixed one.

    Shorter ones, because a prompt that fills the model's length is refused whatever the version.
    """
    found: list[str] = []
    if predictions_path is not None and predictions_path.is_file():
        with predictions_path.open() as lines:
            rows = [json.loads(line) for line in islice(lines, MAX_ROWS)]
        found = sorted((row["prompt"] for row in rows if row["loss"] is not None), key=len)
    return cycle(found[: (len(found) + 1) // 2] or FIXED_PROMPTS)
