"""What the page Fleet is told, from the fleet's files."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from pipeline import audit
from pipeline.fleet.analysis.live import judgement_path, write_judgement
from pipeline.fleet.files import FleetFiles
from pipeline.fleet.state import Aside, Deployment, ModelFleet, Paused, Replica, Rollout, Served, models_path
from pipeline.fleet.views import ModelView
from slipway_airflow.hooks.champions import Aliases
from slipway_airflow.web import plugin, views
from slipway_airflow.web.presses import Press, controls
from tests.judgements import judgement

MLFLOW = "http://127.0.0.1:5000"
LINKS = views.Links(airflow_path="/airflow/", mlflow_url=MLFLOW, run_ids={"run 7"})


def rollout(generation: int, **values: Any) -> Rollout:
    found = {"request_id": f"run {generation}", "version": str(generation), "previous": None, "started_at": 10.0}
    return Rollout.model_validate({**found, "generation": generation, **values})


def deployment(generation: int, version: str) -> Deployment:
    return Deployment(
        version=version,
        generation=generation,
        bundle_digest="0" * 64,
        replicas=(
            Replica(id=f"r{generation}-0", port=4000 + generation),
            Replica(id=f"r{generation}-1", port=5000, use="leaving"),
        ),
        ready=True,
        routed=True,
    )


def served(generation: int, version: str) -> Served:
    return Served(version=version, generation=generation, deployment=generation)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A canary on trial, and a rollout before it that a newer one overtook."""
    model = ModelFleet(
        name="tiny",
        generation=7,
        serving=served(5, "5"),
        canary=served(7, "7"),
        weights={5: 75, 7: 25},
        deployments=(deployment(5, "5"), deployment(7, "7")),
        history=(
            rollout(5, outcome="promoted", ended_at=20.0),
            rollout(6),
            rollout(7, previous="5", phases=("start_canary",)),
        ),
    )
    files = FleetFiles(tmp_path)
    with files.lock():
        files.write(model)
    return tmp_path


def page_of(home: Path, aliases: dict[str, Aliases] | None = None, links: views.Links = LINKS) -> views.FleetPage:
    return views.fleet_page(views.look(home), aliases, links, user="ada", may_press=True)


def test_versions_have_their_parts_their_traffic_and_their_place_in_mlflow(home: Path) -> None:
    """The bar is drawn from these."""
    (model,) = page_of(home).models
    assert [(row.role, row.version, row.weight) for row in model.versions] == [
        ("serving", "5", 75),
        ("canary", "7", 25),
    ]
    assert model.versions[1].mlflow_url == f"{MLFLOW}/#/models/tiny/versions/7"


def test_a_champion_that_is_not_served_is_shown_beside_the_others(home: Path) -> None:
    """And one that is served is not shown twice."""
    (model,) = page_of(home, {"tiny": Aliases(champion="9", serving="5")}).models
    assert [(row.role, row.version) for row in model.versions][-1] == ("champion", "9")
    (model,) = page_of(home, {"tiny": Aliases(champion="7", serving="5")}).models
    assert [row.role for row in model.versions] == ["serving", "canary"]


def test_a_gateway_that_does_not_answer_leaves_health_unknown(home: Path) -> None:
    """Neither well nor ill: there is no stack in this home."""
    page = page_of(home)
    assert page.gateway_answers is False
    assert {row.health for row in page.models[0].replicas} == {"unknown"}


def test_a_replica_that_leaves_is_told_from_one_that_serves(home: Path) -> None:
    """It gets nothing new, and the others share what it had."""
    leaving = [(row.id, row.use, row.weight) for row in page_of(home).models[0].replicas]
    assert leaving == [
        ("r5-0", "serving", 75.0),
        ("r5-1", "leaving", 0.0),
        ("r7-0", "serving", 25.0),
        ("r7-1", "leaving", 0.0),
    ]


def test_the_rollout_under_way_stands_apart_from_those_that_have_ended(home: Path) -> None:
    """Newest first; one that was overtaken never got an outcome, and is called superseded."""
    (model,) = page_of(home).models
    assert model.rollout is not None
    assert model.rollout.generation == 7
    assert [(row.generation, row.outcome) for row in model.history] == [(6, "superseded"), (5, "promoted")]
    assert model.history[0].reason == "rollout 7 began"


def test_a_rollout_leads_to_its_dag_run_if_airflow_has_one(home: Path) -> None:
    """With what is special in a run's id quoted, below wherever Airflow is served from."""
    (model,) = page_of(home).models
    assert model.rollout is not None
    assert model.rollout.run_url == "/airflow/dags/rollout/runs/run%207"
    assert [row.run_url for row in model.history] == [None, None]


def test_a_model_that_was_never_rolled_out_is_shown_from_the_registry(tmp_path: Path) -> None:
    """Nothing serves it yet."""
    (model,) = page_of(tmp_path, {"new": Aliases(champion="1")}).models
    assert (model.name, model.rollout, model.replicas) == ("new", None, ())
    assert [(row.role, row.weight) for row in model.versions] == [("champion", 0)]


def test_without_mlflow_there_are_no_links_to_it_and_the_fleet_is_shown_all_the_same(home: Path) -> None:
    """Its state is in files."""
    page = page_of(home, None, views.Links(airflow_path="/", mlflow_url=None, run_ids=set()))
    assert page.mlflow_answers is False
    assert [row.mlflow_url for row in page.models[0].versions] == [None, None]


def test_a_replica_that_is_put_aside_says_why(home: Path) -> None:
    """It has no traffic while it is so."""
    aside = Aside(kind="slow", reason="its answers take 4.00 s, those of the others 0.50 s (medians)", since=30.0)

    def put_aside(model: ModelFleet) -> ModelFleet:
        bad, *others = model.deployments[0].replicas
        replicas = (bad.model_copy(update={"aside": aside}), *others)
        return model.with_deployment(model.deployments[0].model_copy(update={"replicas": replicas}))

    FleetFiles(home).update("tiny", put_aside)
    found = {row.id: (row.aside, row.weight) for row in page_of(home).models[0].replicas}
    assert found["r5-0"] == (aside, 0.0)
    assert found["r7-0"] == (None, 25.0)


def test_a_damaged_file_is_named_and_the_rest_of_the_page_stays(home: Path) -> None:
    """A model of whose state nothing is known is not called unserved."""
    FleetFiles(home).write(ModelFleet(name="cut"))
    (models_path(home) / "cut.json").write_text("{")
    write_judgement(home, judgement("tiny", 7))
    judgement_path(home, "tiny").write_text("{")
    page = page_of(home, {name: Aliases(champion="1") for name in ("cut", "tiny")})
    assert [(model.name, model.judgement) for model in page.models] == [("tiny", None)]
    assert [found.file for found in page.damaged] == ["models/cut.json", "judgements/tiny.json"]


def test_a_judgement_is_shown_only_while_its_rollout_is_under_way(home: Path) -> None:
    """One of an earlier rollout says nothing of this one."""
    assert page_of(home).models[0].judgement is None
    for generation in (5, 7):
        write_judgement(home, judgement("tiny", generation))
        shown = page_of(home).models[0].judgement
        assert (shown.generation if shown else None) == (7 if generation == 7 else None)


def test_the_newest_entries_of_the_audit_log_are_shown_newest_first(home: Path) -> None:
    """The page has no room for all of them."""
    for number in range(views.MAX_ENTRIES + 3):
        audit.record(home, action="pause", actor="ada", model="tiny", reason=f"reason {number}")
    entries = page_of(home).entries
    assert len(entries) == views.MAX_ENTRIES
    assert [entries[0].reason, entries[1].reason] == ["reason 14", "reason 13"]


def test_traffic_that_moved_is_told_with_its_shares(home: Path) -> None:
    """Rather than that it was traffic."""
    FleetFiles(home).update("tiny", lambda model: model.changed(weights={5: 50, 7: 50}))
    moved = page_of(home).entries[0]
    assert (moved.action, moved.reason) == (
        "moved",
        "version 5 (g5): 75 %, version 7 (g7): 25 % → version 5 (g5): 50 %, version 7 (g7): 50 %",
    )


def view(home: Path, **newest: Any) -> ModelView:
    """The model with other values of its newest rollout, and nothing to go back to but what those say."""
    (model,) = views.look(home).fleet.models.values()
    last = rollout(7, **newest)
    return model.model_copy(update={"canary": None, "previous": None, "history": (last,)})


@pytest.mark.parametrize(
    ("newest", "offered"),
    [
        ({"phases": ("start_canary",)}, ("pause",)),
        ({"phases": ("start_canary",), "paused": Paused(by="ada", reason="a look", at=1.0)}, ("resume",)),
        ({"phases": ("start_canary", "shift")}, ()),
        ({"phases": (), "previous": "5"}, ("pause", "rollback")),
        ({"outcome": "promoted", "previous": "5"}, ("rollback",)),
        ({"outcome": "promoted", "previous": "7"}, ()),
        ({"outcome": "promoted", "previous": None}, ()),
        ({"outcome": "failed", "previous": "5"}, ()),
    ],
    ids=[
        "running",
        "paused",
        "past its last step",
        "replicas start",
        "promoted",
        "promoted again",
        "the first",
        "failed",
    ],
)
def test_a_model_has_the_buttons_that_would_do_something(home: Path, newest: dict[str, Any], offered: Any) -> None:
    """Promote only while MLflow can say which versions there are."""
    model = view(home, **newest)
    assert controls(model, is_registered=False) == offered
    assert controls(model, is_registered=True) == ("promote", *offered)


def test_a_canary_on_trial_can_be_taken_back(home: Path) -> None:
    """Whatever was served before."""
    (model,) = views.look(home).fleet.models.values()
    assert controls(model, is_registered=False) == ("pause", "rollback")


@pytest.mark.parametrize(
    ("field", "value"),
    [("reason", " "), ("reason", "x" * 501), ("action", "delete"), ("version", "../1"), ("generation", -1)],
)
def test_a_press_that_makes_no_sense_is_refused(field: str, value: object) -> None:
    """Before anything is looked at."""
    good = {"model": "tiny", "action": "promote", "version": "3", "reason": " worse answers ", "generation": 7}
    assert Press.model_validate(good).reason == "worse answers"
    with pytest.raises(ValidationError, match=field):
        Press.model_validate({**good, field: value})


def test_the_entry_in_the_navigation_leads_to_the_application() -> None:
    """Below wherever Airflow is served from, so without a slash in front."""
    (app,), (view,) = plugin.FASTAPI_APPS, plugin.EXTERNAL_VIEWS
    assert f"/{view['href']}" == f"{app['url_prefix']}/fleet"
    for icon in ("icon", "icon_dark_mode"):
        assert (Path(views.__file__).parent / "static" / Path(str(view[icon])).name).is_file()
