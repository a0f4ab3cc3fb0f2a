"""Clients of the fleet that speak through OpenAI's own library, in a process of their own.

    python openai_load.py URL KEY_FILE MODEL REPORT.json [--clients 8] [--words 8]

They ask one question after the other, every fourth as a stream, until standard input ends. The key is read anew for
every request. REPORT.json is replaced about four times a second and once more at the end: see `Report`.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STREAM_EVERY = 4
REPORT_EVERY_S = 0.25
MAX_FAILURES = 50
"""So many are told whole; all are counted."""


@dataclass
class Report:
    """What the clients got so far."""

    requests: int = 0
    streams: int = 0
    failed: int = 0
    broken_streams: int = 0
    versions: Counter[str] = field(default_factory=Counter)
    """Good answers by the version that gave them."""
    last_seen: dict[str, float] = field(default_factory=dict)
    """When each version's last good answer was complete, in seconds since the epoch."""
    first_seen: dict[str, float] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    """The first of them, with their reasons."""
    last_failure_at: float | None = None
    latencies_ms: list[float] = field(default_factory=list)
    """Of requests that were no streams, in order."""

    def good(self, version: str) -> None:
        now = time.time()
        self.versions[version] += 1
        self.last_seen[version] = now
        self.first_seen.setdefault(version, now)

    def bad(self, why: str) -> None:
        self.failed += 1
        self.last_failure_at = time.time()
        if len(self.failures) < MAX_FAILURES:
            self.failures.append(why)


class Client:
    """One client after the other question."""

    def __init__(self, arguments: argparse.Namespace, report: Report) -> None:
        from openai import AsyncOpenAI

        self.arguments = arguments
        self.report = report
        self.key_path = Path(arguments.key_file)
        # No second try of its own: what the gateway lets through counts as it is.
        self.openai = AsyncOpenAI(base_url=f"{arguments.url}/v1", api_key="unset", max_retries=0, timeout=60)

    async def run(self, over: asyncio.Event) -> None:
        while not over.is_set():
            self.report.requests += 1
            streams = self.report.requests % STREAM_EVERY == 0
            openai = self.openai.with_options(api_key=self.key_path.read_text().strip())
            try:
                await (self._stream(openai) if streams else self._ask(openai))
            except Exception as error:  # noqa: BLE001 (whatever went wrong, the client got no answer)
                self.report.bad(f"{type(error).__name__}: {error} {getattr(error, '__cause__', '')}")

    async def _ask(self, openai: Any) -> None:
        began = time.monotonic()
        answer = await openai.chat.completions.with_raw_response.create(**self._question())
        if not answer.parse().choices[0].message.content:
            raise ValueError("an answer without content")
        self.report.latencies_ms.append((time.monotonic() - began) * 1000)
        self.report.good(answer.headers["x-slipway-version"])

    async def _stream(self, openai: Any) -> None:
        self.report.streams += 1
        answer = await openai.chat.completions.with_raw_response.create(**self._question(), stream=True)
        words = 0
        try:
            async for chunk in answer.parse():
                words += bool(chunk.choices and chunk.choices[0].delta.content)
        except Exception:
            self.report.broken_streams += 1
            raise
        if words != self.arguments.words:
            self.report.broken_streams += 1
            raise ValueError(f"a stream of {words} words, expected {self.arguments.words}")
        self.report.good(answer.headers["x-slipway-version"])

    def _question(self) -> dict[str, Any]:
        message = {"role": "user", "content": "Where is my card?"}
        return {"model": self.arguments.model, "messages": [message], "max_tokens": self.arguments.words}


async def ask_until_told(arguments: argparse.Namespace) -> None:
    report, over = Report(), asyncio.Event()
    loop = asyncio.get_running_loop()
    threading.Thread(
        target=lambda: (sys.stdin.read(), loop.call_soon_threadsafe(over.set)),  # type: ignore[func-returns-value]
        daemon=True,
    ).start()
    clients = [asyncio.create_task(Client(arguments, report).run(over)) for _ in range(arguments.clients)]
    pending = set(clients)
    while pending:
        _, pending = await asyncio.wait(pending, timeout=REPORT_EVERY_S)
        write(report, Path(arguments.report))


def write(report: Report, path: Path) -> None:
    fresh = path.with_suffix(".fresh")
    fresh.write_text(json.dumps(vars(report)))
    fresh.replace(path)


# --- the test's side -----------------------------------------------------------------------------------------------


@dataclass
class Running:
    """The clients' process."""

    report_path: Path
    key_path: Path

    def report(self) -> Report:
        if not self.report_path.exists():
            return Report()
        found = Report(**json.loads(self.report_path.read_bytes()))
        found.versions = Counter(found.versions)
        return found

    def use_key(self, key: str) -> None:
        fresh = self.key_path.with_suffix(".fresh")
        fresh.write_text(key)
        fresh.replace(self.key_path)


@contextmanager
def openai_clients(
    url: str, key: str, model: str, folder: Path, *, clients: int = 8, words: int = 8
) -> Iterator[Running]:
    """Clients that ask without a pause until the block ends; then their last report is there."""
    folder.mkdir(parents=True, exist_ok=True)
    running = Running(folder / "report.json", folder / "key")
    running.use_key(key)
    command = [sys.executable, __file__, url, str(running.key_path), model, str(running.report_path)]
    command += ["--clients", str(clients), "--words", str(words)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        try:
            yield running
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(120)
    assert process.returncode == 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("url", "key_file", "model", "report"):
        parser.add_argument(name)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--words", type=int, default=8)
    asyncio.run(ask_until_told(parser.parse_args()))
