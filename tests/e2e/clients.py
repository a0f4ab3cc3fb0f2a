"""Clients of the gateway, as an application would be one."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx

VERSION_HEADER = "x-slipway-version"


def ask(gateway_url: str, key: str, model: str, message: str = "Where is my card?") -> httpx.Response:
    """One chat completion."""
    return httpx.post(
        f"{gateway_url}/v1/chat/completions",
        headers={"Authorization": f"Bearer {key}"},
        json={"model": model, "messages": [{"role": "user", "content": message}], "max_tokens": 16, "temperature": 0},
        timeout=60,
    )


@dataclass
class Load:
    """What constant clients have seen so far."""

    answers: Counter[str] = field(default_factory=Counter)
    """By version."""
    failures: list[str] = field(default_factory=list)


@contextmanager
def constant_clients(gateway_url: str, key: str, model: str, *, count: int = 2, pause_s: float = 0.1) -> Iterator[Load]:
    """`count` clients that ask one question after the other until the block ends, with a pause between two."""
    load, ended = Load(), threading.Event()

    def run() -> None:
        while not ended.is_set():
            try:
                answer = ask(gateway_url, key, model)
            except httpx.HTTPError as error:
                load.failures.append(f"{type(error).__name__}: {error}")
                continue
            if answer.status_code == 200:
                load.answers[answer.headers[VERSION_HEADER]] += 1
            else:
                load.failures.append(f"{answer.status_code}: {answer.text}")
            ended.wait(pause_s)

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield load
    finally:
        ended.set()
        for thread in threads:
            thread.join()
