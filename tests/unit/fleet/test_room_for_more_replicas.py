"""What the autoscaler makes of the memory before it adds a replica."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pipeline import audit
from pipeline.errors import ReplicaFailed
from pipeline.fleet import starting
from pipeline.fleet.autoscaling.scaling import Scaler
from pipeline.fleet.capacity import Memory
from pipeline.fleet.state import Deployment, Replica
from pipeline.stack.layout import Layout
from tests import small_fleet

GB = 10**9
MODEL = small_fleet.serving(Replica(id="r-0", port=20_000))
SERVES = MODEL.deployments[0]


def grown(
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    free_gb: float,
    *,
    strategy: str = "auto",
    replica_gb: float = 1.5,
    fails: bool = False,
) -> int:
    """How many replicas there are to be once four are wanted, on 20 GB of memory."""
    memory = Memory(total_bytes=20 * GB, free_bytes=int(free_gb * GB), replica_bytes=int(replica_gb * GB))
    recipe = SimpleNamespace(rollout=SimpleNamespace(strategy=strategy))
    asked: list[int] = []

    def grow(_fleet: Any, _source: Any, count: int, *, by: int, places: int) -> Deployment:
        asked.append(count)
        if fails:
            raise ReplicaFailed("it did not come up")
        replicas = tuple(Replica(id=f"r-{index}", port=20_000 + index) for index in range(count))
        return SERVES.model_copy(update={"replicas": replicas})

    monkeypatch.setattr(starting, "grow", grow)
    monkeypatch.setattr(Scaler, "_source", lambda *_: None)
    fleet = SimpleNamespace(
        layout=Layout(home),
        say=print,
        change=lambda *_: MODEL,
        registry=SimpleNamespace(get=lambda name, version: SimpleNamespace(recipe=recipe)),
        replicas=SimpleNamespace(host=SimpleNamespace(memory=lambda names: memory)),
        files=SimpleNamespace(get=lambda name: MODEL),
    )
    Scaler(cast(Any, fleet)).scale(MODEL, SERVES, 4, "much to do")
    return asked[0]


@pytest.mark.parametrize(
    ("free_gb", "found"), [(10, {}), (0.5, {"strategy": "surge"}), (0.5, {"replica_gb": 0.0})], ids=str
)
def test_where_there_is_room_or_nothing_is_measured_as_many_are_added_as_are_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_gb: float, found: Any
) -> None:
    """`surge` measures nothing, as in a rollout."""
    assert grown(tmp_path, monkeypatch, free_gb, **found) == 4


def test_no_more_replicas_are_added_than_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others would take the memory of those that serve; the audit log says how many came."""
    assert grown(tmp_path, monkeypatch, 4.1) == 3
    assert [entry.details["to"] for entry in audit.read_entries(tmp_path)] == [3]


def test_what_did_not_come_up_was_not_scaled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The audit log would else have a change for each attempt."""
    with pytest.raises(ReplicaFailed, match="did not come up"):
        grown(tmp_path, monkeypatch, 10, fails=True)
    assert list(audit.read_entries(tmp_path)) == []


def test_without_room_for_one_more_nothing_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In words without figures, which would make of each attempt a failure of its own in the audit log."""
    with pytest.raises(ReplicaFailed, match="no memory for a replica of m beside the 1 that serve"):
        grown(tmp_path, monkeypatch, 1.0)
    assert list(audit.read_entries(tmp_path)) == []
