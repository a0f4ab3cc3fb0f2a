"""Probes beside the judge."""

import socket
import threading
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.evaluation.metrics import exact_match
from pipeline.fleet import probing
from pipeline.fleet.probes import Answer, Prompt
from pipeline.fleet.probing import Probing
from pipeline.fleet.state import Deployment
from pipeline.stack.layout import Layout


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """A server that accepts and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def probes_of(tmp_path: Path, server: socket.socket, said: list[str], uptime_s: float) -> Probing:
    port = server.getsockname()[1]
    gateway = SimpleNamespace(url=f"http://127.0.0.1:{port}", uptime_s=lambda: uptime_s)
    fleet: Any = SimpleNamespace(gateway=gateway, layout=Layout(tmp_path), say=said.append)
    canary = Deployment(version="2", generation=2, bundle_digest="0" * 64, replicas=())
    return Probing(
        fleet=fleet, model="tiny", canary=canary, stable=None, prompts=repeat(Prompt("Hi")), metric=exact_match
    )


def test_a_probe_that_hangs_holds_up_neither_the_judge_nor_the_next_probe(
    tmp_path: Path, silent: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another begins beside it after a while, up to a number; ended at last, they are refusals of the canary."""
    monkeypatch.setattr(probing, "IMPATIENT_S", 0.02)
    monkeypatch.setattr(probing, "PROBE_TIMEOUT_S", 0.5)
    found = probes_of(tmp_path, silent, [], uptime_s=1000.0)
    beat, most, refusals = threading.Event(), 0, 0
    while refusals < 3:
        found.more()
        most = max(most, len(found.under_way))
        beat.wait(0.01)
        refusals += found.take().refusals
    found.close()
    assert 1 < most <= probing.MAX_AT_ONCE


def test_a_probe_without_a_gateway_says_nothing_of_the_canary(tmp_path: Path, silent: socket.socket) -> None:
    """There is nobody to ask: no probe is counted, and the next one waits."""
    said: list[str] = []
    found = probes_of(tmp_path, silent, said, uptime_s=1000.0)
    silent.close()
    beat = threading.Event()
    while not said:
        found.more()
        beat.wait(0.01)
    begun = found.begun
    found.more()
    assert found.begun == begun
    assert (found.take().probes, found.take().refusals) == (0, 0)
    assert "the gateway is away" in said[0]
    found.close()


def answer(generation: str | None, status: int = 200, text: str = "card") -> Answer:
    failure = "" if status == 200 else "refused"
    return Answer(status=status, failure=failure, version=generation, generation=generation, text=text)


@pytest.mark.parametrize(
    ("beside", "stable", "refusals"),
    [
        (answer("1"), 1, 1),
        (answer("2"), 0, 1),
        (answer("1", status=400), 0, 0),
        (answer("2", status=400), 0, 1),
        (answer(None, status=400), 0, 0),
    ],
    ids=["the stable version", "the canary", "a refusal of both", "two of the canary", "two of the gateway"],
)
def test_who_answered_counts_and_not_who_was_asked(
    tmp_path: Path, silent: socket.socket, beside: Answer, stable: int, refusals: int
) -> None:
    """The gateway falls back on warm replicas, which are the canary's where an earlier version is tried again."""
    found = probes_of(tmp_path, silent, [], uptime_s=1000.0)
    found.stable = Deployment(version="1", generation=1, bundle_digest="0" * 64, replicas=())
    found._note(Prompt("Hi", reference="card"), answer("2", status=400), beside)
    noted = found.take()
    assert (len(noted.stable), noted.refusals) == (stable, refusals)
    found._note(Prompt("Hi", reference="card"), answer("2"), beside)
    assert len(found.take().scores) == stable
    found.close()
