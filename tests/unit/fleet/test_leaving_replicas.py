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


@pytest.mark.parametrize(("draining", "busy"), [(Process(pid=1, created=0.0), {STREAMS.address}), (None, set())])
def test_streams_of_the_envoy_before_are_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, draining: Process | None, busy: set[str]
) -> None:
    """The present one does not know of them; without one before, nobody else is asked."""
    layout = Layout(tmp_path)
    layout.gateway_path.mkdir(parents=True)
    (layout.gateway_path / STANDING_FILE).write_text(Standing(draining=draining).model_dump_json())
    nothing: Any = None
    fleet = Fleet(
        layout=layout, registry=nothing, replicas=nothing, fetch_bundle=nothing, fetch_predictions=nothing, say=print
    )
    monkeypatch.setattr(fleet.gateway, "active_addresses", lambda model: set())
    monkeypatch.setattr(scraping, "_load", lambda replica: (1.0 if replica == STREAMS else 0.0, 0.0))
    assert fleet._busy("m", [STREAMS, IDLE]) == busy
