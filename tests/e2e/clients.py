"""Clients of the gateway, as an application would be one."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx

VERSION_HEADER = "x-slipway-version"


def open_client(gateway_url: str, key: str) -> httpx.Client:
    """To be kept: making one costs more than a question."""
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.Client(base_url=gateway_url, headers=headers, timeout=60, trust_env=False, verify=False)


def ask(gateway_url: str, key: str, model: str) -> httpx.Response:
    """One chat completion."""
    with open_client(gateway_url, key) as client:
        return complete(client, model, max_tokens=16)


def complete(client: httpx.Client, model: str, *, max_tokens: int) -> httpx.Response:
    message = {"role": "user", "content": "Where is my card?"}
    body = {"model": model, "messages": [message], "max_tokens": max_tokens, "temperature": 0}
    return client.post("/v1/chat/completions", json=body)


@dataclass
class Load:
    """What constant clients have seen so far."""

    answers: Counter[str] = field(default_factory=Counter)
    """By version."""
    failures: list[str] = field(default_factory=list)
    failed_at: list[float] = field(default_factory=list)
    """When each of them was known, in seconds since the epoch."""

    took_s: list[tuple[float, float]] = field(default_factory=list)
    """Of each answer: when it was there, and how long it had taken."""

    def fail(self, why: str) -> None:
        self.failed_at.append(time.time())
        self.failures.append(why)


@contextmanager
def constant_clients(gateway_url: str, key: str, model: str, *, count: int = 2, pause_s: float = 0.2) -> Iterator[Load]:
    """`count` clients that ask one question after the other until the block ends, with a pause between two."""
    load, ended = Load(), threading.Event()

    def run() -> None:
        with open_client(gateway_url, key) as client:
            while not ended.wait(pause_s):
                began = time.time()
                try:
                    # Few tokens: the clients share two cores with the release that they watch.
                    answer = complete(client, model, max_tokens=2)
                except httpx.HTTPError as error:
                    load.fail(f"{type(error).__name__}: {error}")
                    continue
                if answer.status_code == 200:
                    load.answers[answer.headers[VERSION_HEADER]] += 1
                    load.took_s.append((time.time(), time.time() - began))
                else:
                    load.fail(f"{answer.status_code}: {answer.text}")

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield load
    finally:
        ended.set()
        for thread in threads:
            thread.join()
