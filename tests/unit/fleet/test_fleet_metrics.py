"""What Prometheus is told of the fleet, held to Prometheus's own reader."""

import subprocess
from itertools import pairwise
from pathlib import Path

import pytest

from pipeline.fleet.analysis.comparison import Comparison
from pipeline.fleet.analysis.live import Damaged, FleetView
from pipeline.fleet.envoy_config import Json
from pipeline.fleet.exposition import Family, text_of
from pipeline.fleet.files import FleetFiles
from pipeline.fleet.metrics import families
from pipeline.fleet.state import MAX_HISTORY, Aside, ModelFleet, Rollout, Served
from pipeline.fleet.views import ModelView, ReplicaView, read_fleet
from tests.judgements import judgement


def replica(version: str, generation: int, *, healthy: bool | None) -> ReplicaView:
    return ReplicaView(
        id=f"replica-m-v{version}-g{generation}-0",
        version=version,
        generation=generation,
        host="127.0.0.1",
        port=20_000 + generation,
        healthy=healthy,
        weight=0.0,
    )


def rollout(generation: int, outcome: str, ended_at: float | None = None) -> Rollout:
    return Rollout(
        generation=generation,
        request_id=f"r{generation}",
        version=str(generation),
        previous=None,
        outcome=outcome,
        step=1,
        started_at=100.0,
        ended_at=ended_at,
    )


MODEL = ModelView(
    name="m",
    generation=3,
    serving=Served(version="1", generation=1, deployment=1),
    canary=Served(version="3", generation=3, deployment=3),
    previous=None,
    weights={1: 75, 3: 25},
    replicas=(replica("1", 1, healthy=True), replica("1", 1, healthy=False), replica("3", 3, healthy=None)),
    history=(rollout(1, "promoted", 142.0), rollout(2, "running"), rollout(3, "running")),
)
EMPTY = ModelView(
    name="empty", generation=0, serving=None, canary=None, previous=None, weights={}, replicas=(), history=()
)


def host(port: int, **stats: int) -> Json:
    address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    return {"address": address, "stats": [{"name": name, "value": str(value)} for name, value in stats.items()]}


CLUSTERS = {
    "cluster_statuses": [
        {"name": "m.g1", "host_statuses": [host(20_001, rq_total=90, rq_error=1)]},
        {"name": "m.g3", "host_statuses": [host(20_003, rq_success=2, rq_error=5), host(20_001, rq_total=5)]},
        {"name": "mlflow", "host_statuses": [host(5000, rq_total=9)]},
        {"name": "m.g9"},
    ]
}
"""The canary's cluster has the serving replica behind its own, and there is one that is none of the fleet's."""


def seen(*models: ModelView, **values: object) -> FleetView:
    found = {"models": {model.name: model for model in models}, "judgements": {}, "damaged": ()}
    return FleetView.model_validate({**found, **values})


def figures(*models: ModelView, clusters: Json | None = None, **values: object) -> dict[str, float]:
    """Each sample's line up to its value, and the value."""
    text = text_of(families(seen(*models, **values), clusters))
    return {
        name: float(value) for name, _, value in (line.rpartition(" ") for line in text.splitlines() if line[0] != "#")
    }


def of(version: str, generation: int, role: str) -> str:
    cluster = f'envoy_cluster_name="m/g{generation}"'
    return f'model="m",version="{version}",generation="{generation}",role="{role}",{cluster}'


def test_replicas_are_counted_by_what_they_are_for_and_how_they_are() -> None:
    """What the gateway cannot tell of yet is neither well nor ill."""
    found = figures(MODEL)
    for labels, counts in ((of("1", 1, "serving"), (1, 1, 0)), (of("3", 3, "canary"), (0, 0, 1))):
        for word, count in zip(("healthy", "unhealthy", "unknown"), counts, strict=True):
            assert found[f'slipway_fleet_replicas{{{labels},health="{word}"}}'] == count
    assert found[f"slipway_fleet_traffic_ratio{{{of('3', 3, 'canary')}}}"] == 0.25
    assert found['slipway_fleet_serving_info{model="m",version="1",generation="1"}'] == 1


def test_attempts_at_a_replica_are_told_apart_by_the_way_they_came() -> None:
    """What fell back on it from a canary, and what was meant for it: either way may end."""
    found = figures(MODEL, clusters=CLUSTERS)
    counted = {name: value for name, value in found.items() if name.startswith("slipway_replica_")}
    assert counted == {
        f"slipway_replica_{what}_total{{{attempt(version, generation, way)}}}": count
        for version, generation, way, counts in (("1", 1, 1, (90, 1)), ("3", 3, 3, (7, 5)), ("1", 1, 3, (5, 0)))
        for what, count in zip(("attempts", "errors"), counts, strict=True)
    }


def attempt(version: str, generation: int, way: int) -> str:
    replica = f'replica="replica-m-v{version}-g{generation}-0"'
    return f'model="m",version="{version}",generation="{generation}",{replica},envoy_cluster_name="m/g{way}"'


def test_rollouts_are_counted_by_how_they_ended() -> None:
    """One that a newer one overtook too; every outcome is there before it first happens."""
    found = figures(MODEL)
    counts = {
        outcome: found[f'slipway_rollouts_total{{model="m",outcome="{outcome}"}}']
        for outcome in ("promoted", "failed", "rolled_back", "unchanged", "superseded")
    }
    assert counts == {"promoted": 1, "failed": 0, "rolled_back": 0, "unchanged": 0, "superseded": 1}
    assert found['slipway_rollout_running{model="m"}'] == 1
    assert found['slipway_rollout_step{model="m"}'] == 2
    assert found['slipway_rollout_last_duration_seconds{model="m",version="1",outcome="promoted"}'] == 42


def test_a_rollout_that_the_state_has_forgotten_stays_counted(tmp_path: Path) -> None:
    """The state keeps the last fifty only, and a counter must not fall, whenever the exporter begins."""
    state, counts = ModelFleet(name="m"), []
    for generation in range(1, MAX_HISTORY + 12):
        outcome = "failed" if generation % 2 else "promoted"
        state = state.changed(generation=generation).with_rollout(rollout(generation, "running"))
        if generation != 4:
            state = state.with_rollout(rollout(generation, outcome, 200.0))
        FleetFiles(tmp_path).write(state)
        found = figures(*read_fleet(tmp_path).values())
        counts.append({name: value for name, value in found.items() if name.startswith("slipway_rollouts_total")})
    assert all(before[name] <= after[name] for before, after in pairwise(counts) for name in before)
    assert list(counts[-1].values()) == [29, 31, 0, 0, 1]
    assert len(state.history) == MAX_HISTORY


def test_a_replica_that_is_put_aside_is_told_with_why() -> None:
    """And no other."""
    aside = Aside(kind="wrong", reason="it answers as version 9", since=1.0)
    bad = replica("1", 1, healthy=False).model_copy(update={"aside": aside})
    found = figures(MODEL.model_copy(update={"replicas": (bad, *MODEL.replicas[1:])}))
    told = [name for name in found if name.startswith("slipway_fleet_replica_aside")]
    assert told == ['slipway_fleet_replica_aside{model="m",version="1",replica="replica-m-v1-g1-0",kind="wrong"}']


def test_a_damaged_file_is_a_figure_beside_all_the_others() -> None:
    """By its place in the fleet's folder."""
    found = figures(MODEL, damaged=[Damaged(model="cut", file="models/cut.json", reason="it is damaged")])
    assert found['slipway_fleet_file_damaged{model="cut",file="models/cut.json"}'] == 1
    assert found['slipway_fleet_generation{model="m"}'] == 3
    assert not [name for name in figures(MODEL) if "damaged" in name]


def test_the_running_rollouts_comparisons_are_told_with_their_intervals() -> None:
    """An end that is not known yet is absent, and so is the judgement of a rollout that has ended."""
    comparison = Comparison(
        measure="error rate", canary=0.1, stable=0.0, low=0.02, margin=0.05, verdict="undecided", num_canary=20
    )

    def told(model: ModelView) -> dict[str, float]:
        found = figures(model, judgements={"m": judgement("m", 3, version="3", comparisons=(comparison,))})
        return {name: value for name, value in found.items() if name.startswith("slipway_rollout_co")}

    labels = 'model="m",version="3",measure="error rate"'
    ends = {"canary": 0.1, "stable": 0.0, "low": 0.02, "margin": 0.05}
    assert told(MODEL) == {
        **{f'slipway_rollout_comparison{{{labels},unit="",figure="{name}"}}': ends[name] for name in ends},
        f'slipway_rollout_comparison_verdict{{{labels},verdict="undecided"}}': 1,
    }
    assert told(MODEL.model_copy(update={"history": (rollout(3, "failed", 200.0),)})) == {}


def test_a_model_without_replicas_has_no_figures_of_replicas() -> None:
    """And no rollout is under way."""
    found = figures(EMPTY)
    assert found['slipway_rollout_running{model="empty"}'] == 0
    assert not [name for name in found if name.startswith("slipway_fleet_replica")]


def test_quotes_and_line_breaks_in_a_label_stay_inside_it() -> None:
    """As the format wants them."""
    family = Family("a", "gauge", "What.")
    family.add(1, name='say "hi"\n\\')
    assert text_of([family]).splitlines()[-1] == 'a{name="say \\"hi\\"\\n\\\\"} 1'
    assert text_of([Family("b", "gauge", "Nothing to say.")]) == ""


@pytest.mark.needs("prometheus")
def test_prometheus_finds_nothing_to_mend_in_the_figures() -> None:
    """Its own checker: the format, and the customs for names."""
    damaged = [Damaged(model="cut", file="models/cut.json", reason="it is damaged")]
    text = text_of(families(seen(MODEL, EMPTY, damaged=damaged), CLUSTERS))
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
