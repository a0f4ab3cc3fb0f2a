"""The agent over a real socket: jobs of the process backend behind it, and a host of replicas that only takes notes."""

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import uvicorn

from pipeline import settings
from pipeline.agent import AgentClient
from pipeline.contracts.base import step_key
from pipeline.contracts.rollout import Rollout
from pipeline.contracts.specs import STEPS, PlanSpec
from pipeline.errors import SpecError, TransientError
from pipeline.fleet.capacity import Memory
from pipeline.fleet.remote_replicas import RemoteReplicas
from pipeline.fleet.replica_processes import Activity, processes_of
from pipeline.fleet.replicas import Place, ReplicaState
from pipeline.fleet.state import Replica
from pipeline.fleet.vllm import ReplicaPlan
from pipeline.settings import Settings
from pipeline.stack.layout import Layout
from slipway_airflow.agent.server import agent_app
from slipway_airflow.backends.agent import AgentBackend
from slipway_airflow.backends.base import Claim, JobRequest
from slipway_airflow.backends.process import ProcessBackend

pytestmark = pytest.mark.integration

RECIPE = {
    "name": "tiny",
    "dataset": {"generate": {"kind": "support-intents", "train_rows": 100, "eval_rows": 50}},
    "base_model": {"init": {}},
}


@dataclass
class Notes:
    """A host that starts nothing."""

    plans: dict[str, ReplicaPlan] = field(default_factory=dict)
    restarted: list[tuple[str, bool]] = field(default_factory=list)
    used_s: float = 0.0
    pace_s: float = 1.0
    """Of the processor time that a replica has had when it is asked for."""

    def places(self, count: int, taken: set[str]) -> list[Place]:
        return [(f"10.0.0.{index}", 8000) for index in range(1, 9) if f"10.0.0.{index}:8000" not in taken][:count]

    def put(self, plan: ReplicaPlan) -> None:
        self.plans[plan.replica.id] = plan

    def remove(self, name: str, *, at_once: bool = False) -> None:
        self.plans.pop(name, None)

    def activity(self, name: str) -> Activity:
        self.used_s += self.pace_s
        return Activity(waits=False, used_s=self.used_s)

    def restart(self, name: str, *, at_once: bool) -> None:
        self.restarted.append((name, at_once))

    def memory(self, names: Sequence[str]) -> Memory:
        return Memory(total_bytes=100, free_bytes=50, replica_bytes=len(names))

    def states(self) -> dict[str, ReplicaState]:
        return {name: ReplicaState(state="RUNNING", pid=7) for name in self.plans}

    def log_of(self, name: str) -> str:
        return name


@pytest.fixture
def configured(tmp_path: Path) -> Settings:
    return settings.load({"SLIPWAY_HOME": str(tmp_path / "home"), "SLIPWAY_AGENT": str(tmp_path / "agent.sock")})


@pytest.fixture
def notes(configured: Settings) -> Iterator[Notes]:
    """What the running agent's host of replicas was asked for."""
    notes = Notes()
    app = agent_app(configured, ProcessBackend(configured), notes)
    server = uvicorn.Server(uvicorn.Config(app, uds=str(configured.agent_path), log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield notes
    server.should_exit = True
    thread.join()


def plan_request(configured: Settings) -> JobRequest:
    spec = PlanSpec(recipe=RECIPE, request_id="one")
    out_uri = f"{configured.store_uri}/plan/{step_key('plan', STEPS['plan'].version, spec)}"
    return JobRequest(
        job_id="plan-1",
        environment="control",
        arguments=("-m", "pipeline", "plan", "--spec", "{spec}", "--out", out_uri),
        spec=spec.model_dump_json(),
        deadline_s=120,
        variables={"SLIPWAY_HOME": str(configured.home_path)},
        claim=Claim(holder="run/task", token="first"),
    )


@pytest.mark.usefixtures("notes")
def test_a_step_runs_through_the_agent(configured: Settings) -> None:
    """Submitted, followed, found by its claim, forgotten: all by requests, as if the backend were here."""
    backend, request = AgentBackend(configured), plan_request(configured)
    assert not backend.submit(request).attached
    while backend.status(request.job_id).state == "running":
        time.sleep(0.05)
    text, end = backend.logs(request.job_id, 0)
    assert backend.status(request.job_id).state == "succeeded", text
    assert "published" in text
    assert backend.logs(request.job_id, end) == ("", end)
    assert backend.claims_of("run/task") == [(request.job_id, request.claim)]
    assert backend.submit(request).attached
    assert backend.cancel(request.job_id, request.claim) is False
    backend.forget(request.job_id)
    assert backend.status(request.job_id).state == "unknown"
    assert backend.reap(keep_s=0) == 0


@pytest.mark.usefixtures("notes")
def test_what_is_no_step_is_refused_with_the_same_error(configured: Settings) -> None:
    """A caller sees no difference between an error here and one there."""
    other = plan_request(configured).model_copy(update={"arguments": ("-c", "print(1)")})
    with pytest.raises(SpecError, match="the agent runs steps"):
        AgentBackend(configured).submit(other)


def test_replicas_are_asked_for_by_plan(configured: Settings, notes: Notes) -> None:
    """Places first, then the plan; what is removed is gone, twice too."""
    assert configured.agent_path is not None
    host = RemoteReplicas(AgentClient(configured.agent_path))
    [(address, port)] = host.places(1, {"10.0.0.1:8000"})
    assert (address, port) == ("10.0.0.2", 8000)
    wanted = ReplicaPlan(
        replica=Replica(id="replica-tiny-v1-g1-0", host=address, port=port),
        model="tiny",
        version="1",
        generation=1,
        bundle_path=configured.cache_path / "bundle",
        settings=Rollout(),
        core=0,
    )
    host.put(wanted)
    assert notes.plans == {wanted.replica.id: wanted}
    assert host.states() == {wanted.replica.id: ReplicaState(state="RUNNING", pid=7)}
    host.remove(wanted.replica.id)
    host.remove(wanted.replica.id, at_once=True)
    assert host.states() == {}


def test_a_replica_works_while_its_processor_time_grows(configured: Settings, notes: Notes) -> None:
    """Looked at through the agent, and started anew by it."""
    name = "replica-tiny-v1-g1-0"
    found = processes_of(configured, Layout(configured.home_path))
    assert [found.works(name), found.works(name)] == [False, True]
    notes.pace_s = 0.0
    assert not found.works(name)
    found.end(name, at_once=True)
    assert notes.restarted == [(name, True)]


def test_while_the_agent_is_away_no_replica_counts_as_one_that_does_nothing(configured: Settings) -> None:
    """It would be killed for it as soon as the agent is back."""
    assert processes_of(configured, Layout(configured.home_path)).works("replica-tiny-v1-g1-0")


def test_an_agent_that_is_away_is_a_fault_that_may_pass(tmp_path: Path) -> None:
    """The message says what to start."""
    with pytest.raises(TransientError, match="service `jobs`"):
        AgentClient(tmp_path / "nobody.sock").call("GET", "/health")
