"""What a step's task does with its job: reuse, wait, defer, resume, retry, fail, cancel. Real jobs, no Airflow."""

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException, TaskDeferred

from pipeline import settings
from pipeline.contracts.specs import RolloutSpec
from pipeline.settings import ROOT
from slipway_airflow import rollout_steps
from slipway_airflow.backends import open_backend
from slipway_airflow.job_log import JobLog
from slipway_airflow.operators import step as step_module
from slipway_airflow.operators.step import StepOperator
from slipway_airflow.rollout_steps import RollBackOperator
from slipway_airflow.triggers.job import JobTrigger
from slipway_airflow.upstream import Upstream, Work
from tests.contracts.backend_conformance import wait_for

MODEL = "intents"


class Stage:
    """A home with stubs in the place of the environments, and the context of one task instance."""

    def __init__(self, home: Path) -> None:
        self.home = home
        (home / "stub").mkdir(parents=True)
        python = home / "venvs" / "control" / "bin" / "python"
        python.parent.mkdir(parents=True)
        real, stub = settings.load().python_path("control"), ROOT / "tests" / "integration" / "stub_step.py"
        python.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {real} {stub} "$@"\n')
        python.chmod(0o755)
        self.xcoms: dict[str, Any] = {}
        ti = SimpleNamespace(
            dag_id="rollout",
            run_id="run",
            task_id="plan",
            map_index=-1,
            xcom_pull=lambda task_ids: self.xcoms.get(task_ids),
            xcom_push=lambda key, value: self.xcoms.__setitem__(key, value),
        )
        self.context: Any = {"ti": ti, "run_id": "run", "params": {"name": MODEL, "version": None}}

    def tell(self, phase: str, **what: object) -> None:
        (self.home / "stub" / f"{MODEL}-{phase}.json").write_text(json.dumps(what))

    def runs(self) -> int:
        path = self.home / "stub" / "runs"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def upstream(self) -> Upstream:
        return Upstream(self.context, settings.load())


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    stage = Stage(tmp_path)
    monkeypatch.setenv("SLIPWAY_HOME", str(tmp_path))
    monkeypatch.setenv("SLIPWAY_VENVS", str(tmp_path / "venvs"))
    monkeypatch.setattr(step_module, "WATCH_S", 60)
    return stage


def operator() -> StepOperator:
    return StepOperator(step="rollout", task_id="plan", work=rollout_steps.plan_work)


def run_phase(stage: Stage, phase: str) -> None:
    """Runs a phase as its task would, and keeps its XCom."""
    work = getattr(rollout_steps, f"{phase}_work")
    stage.xcoms[phase] = StepOperator(step="rollout", task_id=phase, work=work).execute(stage.context)


def test_a_finished_artifact_is_reused_without_a_job(stage: Stage) -> None:
    """The second run finds the first one's manifest."""
    first = operator().execute(stage.context)
    assert operator().execute(stage.context) == first
    assert set(first) == {"uri", "digest"}
    assert stage.runs() == 1


def test_a_job_whose_artifact_is_gone_runs_again(stage: Stage) -> None:
    """A success counts only as long as what it made is there."""
    first = operator().execute(stage.context)
    (Path(first["uri"].removeprefix("file://")) / "manifest.json").unlink()
    assert operator().execute(stage.context) == first
    assert stage.runs() == 2


@pytest.mark.parametrize(("code", "kind"), [(64, AirflowFailException), (65, AirflowFailException)])
def test_a_verdict_fails_at_once_with_the_jobs_own_words(stage: Stage, code: int, kind: type[Exception]) -> None:
    """No retry would change it."""
    stage.tell("plan", exit_code=code)
    with pytest.raises(kind, match="StubError: plan was told to fail"):
        operator().execute(stage.context)


def test_a_transient_fault_is_left_to_a_retry(stage: Stage) -> None:
    """An exception that Airflow retries; the next try starts the job anew."""
    stage.tell("plan", exit_code=75)
    with pytest.raises(AirflowException, match="was told to fail") as caught:
        operator().execute(stage.context)
    assert not isinstance(caught.value, AirflowFailException)
    stage.tell("plan")
    operator().execute(stage.context)
    assert stage.runs() == 2


def test_a_long_job_is_left_to_the_triggerer_and_picked_up_again(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trigger is rebuilt from its own description, follows the log, and fires; the task resumes."""
    monkeypatch.setattr(step_module, "WATCH_S", 0)
    hold = stage.home / "hold"
    hold.touch()
    stage.tell("plan", hold=str(hold))
    with pytest.raises(TaskDeferred) as deferred:
        operator().execute(stage.context)
    _, described = deferred.value.trigger.serialize()
    assert json.loads(json.dumps(described)) == described

    async def first_event() -> Any:
        hold.unlink()
        [event] = [event async for event in JobTrigger(**described).run()]
        return event.payload

    event = asyncio.run(first_event())
    assert event["state"] == "succeeded"
    assert event["offset"] > 0
    resumed = operator().resume(stage.context, event=event, **deferred.value.kwargs)
    assert resumed["uri"] == deferred.value.kwargs["out_uri"]
    assert stage.runs() == 1


def test_a_second_try_attaches_and_the_first_ones_end_does_not_cancel_it(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user cleared the task: its new try has the job by the time the old trigger is told."""
    monkeypatch.setattr(step_module, "WATCH_S", 0)
    hold = stage.home / "hold"
    hold.touch()
    stage.tell("plan", hold=str(hold))
    triggers = []
    for _ in range(2):
        with pytest.raises(TaskDeferred) as deferred:
            operator().execute(stage.context)
        triggers.append(JobTrigger(**deferred.value.trigger.serialize()[1]))
    backend = open_backend(settings.load())
    wait_for("the job has begun", lambda: stage.runs() == 1)
    asyncio.run(triggers[0].on_kill())
    assert backend.status(triggers[0].job_id).state == "running"
    asyncio.run(triggers[1].on_kill())
    assert backend.status(triggers[0].job_id).state == "cancelled"
    assert stage.runs() == 1


def test_killing_the_task_while_it_watches_cancels_the_job(stage: Stage) -> None:
    """on_kill returns at once; the job ends."""
    hold = stage.home / "hold"
    hold.touch()
    stage.tell("plan", hold=str(hold))
    task = operator()
    shown: list[str] = []

    def show(lines: Any) -> None:
        shown.extend(lines)
        if any("progress 2/3" in line for line in shown):
            task.on_kill()

    task._show = show  # type: ignore[method-assign]
    with pytest.raises(AirflowFailException, match="cancelled"):
        task.execute(stage.context)


def test_an_unhealthy_canary_is_rolled_back_with_its_reason_and_the_task_fails(stage: Stage) -> None:
    """The artifact is there all the same, for `retire`."""
    stage.tell("shift", outcome="unhealthy")
    for phase in ("plan", "start_canary", "shift"):
        run_phase(stage, phase)
    with pytest.raises(AirflowSkipException, match="shift ended as unhealthy"):
        rollout_steps.promote_work(stage.upstream())
    task = RollBackOperator(task_id="roll_back", work=rollout_steps.roll_back_work)
    with pytest.raises(AirflowFailException, match="version 2 was rolled back to 1: shift as told"):
        task.execute(stage.context)
    assert set(stage.xcoms["return_value"]) == {"uri", "digest"}


def test_a_failed_phase_is_the_reason_for_rolling_back(stage: Stage) -> None:
    """Taken from the job's log; nothing but references travels between tasks."""
    stage.tell("start_canary", exit_code=65)
    run_phase(stage, "plan")
    with pytest.raises(AirflowFailException):
        run_phase(stage, "start_canary")
    spec = rollout_steps.roll_back_work(stage.upstream()).spec
    assert isinstance(spec, RolloutSpec)
    assert spec.reason == "start_canary failed: StubError: start_canary was told to fail"


def test_a_plan_that_failed_for_good_ends_the_rollout_that_it_numbered(stage: Stage) -> None:
    """The step finds it by the run, as the plan itself does; nothing is retired."""
    stage.tell("plan", exit_code=65)
    with pytest.raises(AirflowFailException):
        run_phase(stage, "plan")
    spec = rollout_steps.roll_back_work(stage.upstream()).spec
    assert isinstance(spec, RolloutSpec)
    assert (spec.phase, spec.generation, spec.request_id) == ("roll_back", 0, "run")
    assert spec.reason == "plan failed: StubError: plan was told to fail"
    run_phase(stage, "roll_back")
    with pytest.raises(AirflowSkipException, match="there is no plan"):
        rollout_steps.retire_work(stage.upstream())
    stage.context["params"]["name"] = None
    with pytest.raises(AirflowSkipException, match="there is no plan"):
        rollout_steps.roll_back_work(stage.upstream())


@pytest.mark.parametrize("outcome", ["healthy", "superseded"])
def test_what_went_well_or_was_overtaken_is_not_rolled_back(stage: Stage, outcome: str) -> None:
    """A newer rollout has taken over the canary's place already."""
    stage.tell("shift", outcome=outcome)
    for phase in ("plan", "start_canary", "shift"):
        run_phase(stage, phase)
    with pytest.raises(AirflowSkipException, match=f"shift ended as {outcome}"):
        rollout_steps.roll_back_work(stage.upstream())
    with pytest.raises(AirflowSkipException, match="nothing to retire"):
        rollout_steps.retire_work(stage.upstream())


def test_nothing_to_do_skips_what_follows(stage: Stage) -> None:
    """The plan's own reason is shown."""
    stage.tell("plan", outcome="nothing_to_do")
    run_phase(stage, "plan")
    for work in (rollout_steps.start_canary_work, rollout_steps.roll_back_work, rollout_steps.retire_work):
        with pytest.raises(AirflowSkipException, match="nothing_to_do: plan as told"):
            work(stage.upstream())


def test_a_rollout_by_hand_needs_a_name(stage: Stage) -> None:
    """Said in the words of the form."""
    stage.context["params"]["name"] = None
    with pytest.raises(AirflowFailException, match="needs `name`"):
        operator().execute(stage.context)


def test_the_newest_event_of_a_run_names_the_model(stage: Stage) -> None:
    """Airflow merges events of the same moment."""
    events = [
        SimpleNamespace(timestamp=moment, extra={"payload": {"name": name, "version": "1"}})
        for moment, name in ((2, "newest"), (1, "older"))
    ]
    stage.context["triggering_asset_events"] = {"champions": events}
    spec = rollout_steps.plan_work(stage.upstream()).spec
    assert isinstance(spec, RolloutSpec)
    assert spec.name == "newest"


def test_two_runs_that_want_the_same_share_a_job_id() -> None:
    """And different steps or stores never do."""
    from slipway_airflow.backends.base import job_id

    assert job_id("evaluate_compressed", "file:///s/x/1") == job_id("evaluate_compressed", "file:///s/x/1")
    assert job_id("finetune", "file:///s/x/1") != job_id("finetune", "s3://s/x/1")


def test_the_last_error_is_found_with_its_lines() -> None:
    """Errors may have several lines; what went before them is not part of them."""
    text = "progress 1/2\nerror 65 DataError: bad\n  row 1\n  row 2\n"
    backend = SimpleNamespace(logs=lambda job, offset: (text[offset:], len(text)))
    log = JobLog(backend, "job", 0)  # type: ignore[arg-type]
    assert list(log.rest()) == text.splitlines()
    assert log.error == "DataError: bad\n  row 1\n  row 2"


def test_work_needs_a_deadline() -> None:
    """No job runs without a limit."""
    with pytest.raises(TypeError):
        Work(spec=RolloutSpec(name="m", phase="plan", request_id="r"), release="m")  # type: ignore[call-arg]
