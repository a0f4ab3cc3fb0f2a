"""When a replica that leaves has finished what it has begun."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.fleet.autoscaling import scraping
from pipeline.fleet.epochs import STANDING_FILE, Process, Standing
from pipeline.fleet.parts import Fleet
from pipeline.fleet.state import Replica
from pipeline.stack.layout import Layout

STREAMS = Replica(id="streams", port=20_001)
IDLE = Replica(id="idle", port=20_002)


def fleet_of(home: Path, monkeypatch: pytest.MonkeyPatch, draining: Process | None) -> Fleet:
    """One of whose replicas `STREAMS` says that it runs a request, and `IDLE` that it runs none."""
    layout = Layout(home)
    layout.gateway_path.mkdir(parents=True)
    (layout.gateway_path / STANDING_FILE).write_text(Standing(draining=draining).model_dump_json())
    monkeypatch.setattr(scraping, "_load", lambda replica: (1.0 if replica == STREAMS else 0.0, 0.0))
    nothing: Any = None
    return Fleet(
        layout=layout, registry=nothing, replicas=nothing, fetch_bundle=nothing, fetch_predictions=nothing, say=print
    )


@pytest.mark.parametrize(("draining", "busy"), [(Process(pid=1, created=0.0), {STREAMS.address}), (None, set())])
def test_streams_of_the_envoy_before_are_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, draining: Process | None, busy: set[str]
) -> None:
    """The present one does not know of them; without one before, nobody else is asked."""
    fleet = fleet_of(tmp_path, monkeypatch, draining)
    monkeypatch.setattr(fleet.gateway, "active_addresses", lambda model: set())
    assert fleet._busy("m", [STREAMS, IDLE]) == busy


def test_a_gateway_that_does_not_answer_is_not_taken_for_an_idle_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What streams is known from the replicas themselves; whether more begins, from nobody."""
    fleet = fleet_of(tmp_path, monkeypatch, None)
    monkeypatch.setattr(fleet.gateway, "ask", lambda path, parameters=None: None)
    assert fleet._busy("m", [STREAMS, IDLE]) == {STREAMS.address}
    assert fleet._takes_more({IDLE.address})
