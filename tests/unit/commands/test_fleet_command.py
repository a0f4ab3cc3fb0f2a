"""What `slipway fleet` and `slipway rollout status` say of a fleet whose gateway is down."""

import io
import json
import time
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from pipeline.commands import rollout_status
from pipeline.commands.app import app
from pipeline.commands.bars import interval_bar
from pipeline.commands.rollout_status import bar_width
from pipeline.fleet.analysis.comparison import Comparison
from pipeline.fleet.analysis.live import judgement_path, write_judgement
from pipeline.fleet.files import FleetFiles
from pipeline.fleet.state import (
    Aside,
    Deployment,
    ModelFleet,
    Paused,
    Replica,
    Rollout,
    Served,
    models_path,
    outcome_of,
)
from pipeline.fleet.views import read_fleet, role_of
from tests.judgements import COMPARISON, judgement


def deployment(version: str, generation: int) -> Deployment:
    replica = Replica(id=f"replica-m-v{version}-g{generation}-0", port=20_000 + generation)
    return Deployment(
        version=version, generation=generation, bundle_digest="0" * 64, replicas=(replica,), ready=True, routed=True
    )


def rollout(generation: int, **values: object) -> Rollout:
    fields = {"request_id": f"r{generation}", "version": str(generation), "previous": None, "started_at": time.time()}
    return Rollout.model_validate({"generation": generation, **fields, **values})


PROMOTED = rollout(1, outcome="promoted", started_at=1000.0, ended_at=1042.0, reason="not worse")


def write(home: Path, **values: object) -> ModelFleet:
    """The model `m`: version 1 serves, version 2 is on trial with a quarter of the traffic, unless `values` differ."""
    model = ModelFleet(
        name="m",
        generation=2,
        serving=Served(version="1", generation=1, deployment=1),
        canary=Served(version="2", generation=2, deployment=2),
        weights={1: 75, 2: 25},
        deployments=(deployment("1", 1), deployment("2", 2)),
        history=(PROMOTED, rollout(2, previous="1", phases=("plan", "start_canary"))),
    ).changed(**values)
    FleetFiles(home).write(model)
    return model


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home that the commands look into."""
    monkeypatch.setenv("SLIPWAY_HOME", str(tmp_path))
    return tmp_path


def say(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


@pytest.mark.usefixtures("home")
def test_a_fleet_without_models_says_how_to_get_one() -> None:
    """And programs get an empty object."""
    assert "slipway release demo" in say("fleet").output
    assert json.loads(say("fleet", "--json").output) == {}


def test_the_fleet_names_versions_replicas_shares_and_rollouts(home: Path) -> None:
    """A health that nobody can tell is not called bad."""
    write(home)
    said = say("fleet").output
    assert "serving version 1 (generation 1), canary version 2 (generation 2)" in said
    for line in ("1 serving replica-m-v1-g1-0 127.0.0.1:20001 not known 75 %", "2 canary replica-m-v2-g2-0"):
        assert line in " ".join(said.split())
    assert "promoted" in said
    assert "42 s" in said
    assert "not worse" in said


def test_programs_get_roles_health_and_shares(home: Path) -> None:
    """One object for each model, by name."""
    write(home)
    (found,) = json.loads(say("fleet", "m", "--json").output).values()
    assert [(r["role"], r["healthy"], r["weight"]) for r in found["replicas"]] == [
        ("serving", None, 75.0),
        ("canary", None, 25.0),
    ]
    assert [r["outcome"] for r in found["history"]] == ["promoted", "running"]


def test_a_replica_that_is_about_to_go_says_so(home: Path) -> None:
    """It finishes what it has begun."""
    leaving = Replica(id="replica-m-v1-g1-0", port=20_001, use="leaving")
    write(home, deployments=(deployment("1", 1).model_copy(update={"replicas": (leaving,)}), deployment("2", 2)))
    assert "1 serving, leaving replica-m-v1-g1-0" in " ".join(say("fleet").output.split())


def test_a_replica_that_is_put_aside_says_why_and_for_how_long(home: Path) -> None:
    """It gets nothing, and the others have its share."""
    aside = Aside(kind="hung", reason="it has not answered 3 questions in a row", since=time.time() - 40)
    bad, good = Replica(id="bad", port=1, aside=aside), Replica(id="good", port=2)
    write(home, deployments=(deployment("1", 1).model_copy(update={"replicas": (bad, good)}), deployment("2", 2)))
    said = " ".join(say("fleet").output.split())
    assert "1 serving bad 127.0.0.1:1 put aside: hung 0 %" in said
    assert "1 serving good 127.0.0.1:2 not known 75 %" in said
    assert "bad put aside for 40 s: it has not answered 3 questions in a row" in said


def test_a_damaged_state_leaves_the_other_models_to_be_seen(home: Path) -> None:
    """The exit code and a line say which file it is; who asks for another model is not told."""
    write(home)
    FleetFiles(home).write(ModelFleet(name="cut"))
    (models_path(home) / "cut.json").write_text("{")
    for arguments in (("fleet",), ("fleet", "--json")):
        done = say(*arguments)
        assert "replica-m-v1-g1-0" in done.output
        assert "cut.json is damaged" in str(done.exception)
    assert say("fleet", "m").exit_code == 0
    assert say("rollout", "status", "m").exit_code == 0
    for command in (("fleet", "cut"), ("rollout", "status", "cut")):
        assert "cut.json is damaged" in str(say(*command).exception)


def test_a_damaged_judgement_leaves_the_rollout_to_be_seen(home: Path) -> None:
    """Without what is compared now."""
    write(home)
    write_judgement(home, JUDGEMENT)
    judgement_path(home, "m").write_text("{")
    for arguments in ((), ("--json",)):
        done = say("rollout", "status", "m", *arguments)
        assert "a judgement at 25 % of the traffic" in done.output
        assert "m.json is damaged" in done.output
        assert done.exit_code == 0


def test_replicas_that_nobody_counts_on_yet_are_spare(home: Path) -> None:
    """They load their weights, or are about to go."""
    write(home, canary=None)
    model = read_fleet(home)["m"]
    assert [role_of(model, replica.generation) for replica in model.replicas] == ["serving", "spare"]


def test_a_rollout_that_a_newer_one_overtook_was_superseded(home: Path) -> None:
    """The state leaves it as running."""
    model = write(home, generation=3)
    assert [outcome_of(found, model.generation) for found in model.history] == ["promoted", "superseded"]


@pytest.mark.parametrize("command", [("fleet", "n"), ("rollout", "status", "n")])
def test_an_unknown_model_is_refused_with_those_that_there_are(home: Path, command: tuple[str, ...]) -> None:
    """So a slip of the pen is seen at once."""
    write(home)
    assert "no model 'n'; it has m" in str(say(*command).exception)


def test_a_model_that_was_never_rolled_out_says_what_to_do(home: Path) -> None:
    """Promote it."""
    write(home, history=(), canary=None)
    assert "slipway promote m" in str(say("rollout", "status", "m").exception)


@pytest.mark.parametrize(
    ("phases", "weights", "waits_for"),
    [
        (("plan",), {1: 100}, "replicas of version 2: 0 of 1 healthy"),
        (("plan", "start_canary"), {1: 100}, "its first traffic"),
        (("plan", "start_canary"), {1: 75, 2: 25}, "a judgement at 25 % of the traffic"),
        (("plan", "start_canary", "shift"), {2: 100}, "version 2 to be made what is served"),
    ],
)
def test_a_running_rollout_says_what_it_waits_for(
    home: Path, phases: tuple[str, ...], weights: dict[int, int], waits_for: str
) -> None:
    """Phase by phase."""
    write(home, weights=weights, history=(PROMOTED, rollout(2, previous="1", phases=phases)))
    done = say("rollout", "status", "m")
    assert f"waits for {waits_for}" in done.output
    assert done.exit_code == 0


JUDGEMENT = judgement("m", 2, reason="too few to tell")


def test_a_running_rollout_shows_what_is_compared_now(home: Path) -> None:
    """With its interval, and what the judgement rests on."""
    write(home)
    write_judgement(home, JUDGEMENT)
    said = " ".join(say("rollout", "status", "m").output.split())
    assert "step 1, 25 % of the traffic, 31 requests of clients and 9 probes so far" in said
    assert "waits for a judgement at 25 % of the traffic: too few to tell" in said
    assert "time to first token, median 46 ms 41 ms" in said
    assert "2.5 … 7.5 (10) 40/120 not worse" in said


def test_a_judgement_of_an_earlier_rollout_is_not_shown_as_this_ones(home: Path) -> None:
    """The file stays until the next one looks."""
    write(home)
    write_judgement(home, JUDGEMENT.model_copy(update={"generation": 1}))
    assert "time to first token" not in say("rollout", "status", "m").output


def test_a_rollout_that_has_ended_shows_its_last_comparisons(home: Path) -> None:
    """Which the state keeps."""
    write(home, history=(rollout(2, outcome="promoted", comparisons=(COMPARISON,)),))
    (found,) = json.loads(say("rollout", "status", "m", "--json").output)["comparisons"]
    assert Comparison.model_validate(found) == COMPARISON


def test_a_paused_rollout_says_by_whom_and_how_it_goes_on(home: Path) -> None:
    """Rather than what would be waited for otherwise."""
    held = Paused(by="ann", reason="a customer complains", at=0.0)
    write(home, history=(rollout(2, phases=("start_canary",), paused=held),))
    said = say("rollout", "status", "m").output
    assert "waits for `slipway rollout resume m`: paused by ann" in said
    assert "a customer complains" in said


@pytest.mark.parametrize(
    ("low", "high", "drawn"),
    [
        (2.5, 7.5, "         │ ━━●━ ┊  "),
        (-5.0, 5.0, "     ━━━━│━━━●  ┊  "),
        (None, 5.0, "╌╌╌╌╌╌╌╌╌│╌╌╌●  ┊  "),
        (None, None, "╌╌╌╌╌╌╌╌╌│╌╌╌●╌╌┊╌╌"),
    ],
)
def test_an_interval_is_drawn_between_no_difference_and_the_margin(
    low: float | None, high: float | None, drawn: str
) -> None:
    """An end that is not known yet runs off the bar."""
    assert interval_bar(COMPARISON.model_copy(update={"low": low, "high": high}), width=19) == drawn


@pytest.mark.parametrize(("room", "bar"), [(-5, 0), (14, 0), (15, 15), (20, 19), (33, 33), (80, 33)])
def test_a_bar_takes_what_the_other_columns_leave(room: int, bar: int) -> None:
    """Its middle is no difference; where it could tell nothing there is none."""
    assert bar_width(room) == bar


@pytest.mark.parametrize(("width", "bars"), [(60, 0), (80, 0), (120, 2)])
def test_no_verdict_is_cut_off_whatever_the_terminals_width(
    width: int, bars: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A narrow one has no room for bars, and the longest names take two lines."""
    narrow = Console(width=width, record=True, file=io.StringIO())
    monkeypatch.setattr(rollout_status, "console", narrow)
    score = Comparison(
        measure="score against stable, golden prompts", unit="points", canary=98.3, margin=-2, num_canary=9
    )
    narrow.print(rollout_status.comparisons_table((COMPARISON, score)))
    shown = narrow.export_text()
    assert "…" not in shown.replace(" … ", "")
    assert ("not worse" in shown, "undecided" in shown) == (True, True)
    assert "2.5 … 7.5 (10)" in shown
    assert "98.3 %" in shown
    assert shown.count("┊") == bars + (bars > 0)


def test_what_is_compared_with_nothing_is_drawn_without_a_point() -> None:
    """The first version has no other beside it; a measure without any figure has no length either."""
    bare = Comparison(measure="error rate", margin=0.0, num_canary=0)
    assert set(interval_bar(bare)) == {"╌", "┊"}


@pytest.mark.parametrize(
    ("outcome", "code"), [("promoted", 0), ("unchanged", 0), ("failed", 65), ("rolled back", 65), ("running", 0)]
)
def test_the_exit_code_tells_programs_what_became_of_it(home: Path, outcome: str, code: int) -> None:
    """And JSON says the rest."""
    write(home, history=(PROMOTED, rollout(2, outcome=outcome, reason="5 of 9 failed")))
    done = say("rollout", "status", "m", "--json")
    assert done.exit_code == code
    found = json.loads(done.output)
    assert (found["outcome"], found["reason"], found["weight"]) == (outcome, "5 of 9 failed", 25)


def test_watching_a_rollout_that_has_ended_ends_at_once(home: Path) -> None:
    """With its reason."""
    write(home, history=(PROMOTED, rollout(2, outcome="failed", reason="5 of 9 failed")))
    done = say("rollout", "status", "m", "--watch")
    assert (done.exit_code, "5 of 9 failed" in done.output) == (65, True)
