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
from pipeline.fleet.probes import Prompt
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
        fleet=fleet, model="tiny", canary=canary, has_stable=False, prompts=repeat(Prompt("Hi")), metric=exact_match
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
