"""What a step's container is given and, as important, what it is not."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from pipeline import settings
from pipeline.containers import HOME_LABEL, JOB_LABEL, RANK_LABEL, home_label
from pipeline.contracts.recipe import StepResources
from pipeline.errors import SpecError
from pipeline.settings import ROOT
from pipeline.stack.layout import Layout
from slipway_airflow.backends.base import Claim, JobRequest
from slipway_airflow.backends.container_plan import ContainerPlan, local_path
from slipway_airflow.backends.job_folders import JobFolder

IMAGE_ID = "sha256:" + "0" * 64
OUT = "file:///store/finetune/key"
ROLLOUT = ("-m", "pipeline", "rollout", "--spec", "{spec}", "--out", OUT)
IN_COMPOSE = {
    "SLIPWAY_STORE": "s3://bucket/store",
    "SLIPWAY_AGENT": "/run/agent/agent.sock",
    "SLIPWAY_DOCKER_AGENT_VOLUME": "team_agent",
    "SLIPWAY_DOCKER_FLEET_NETWORK": "team_fleet",
    "SLIPWAY_DOCKER_NETWORK": "team_jobs",
    "SLIPWAY_DOCKER_PROJECT": "team",
    "SLIPWAY_DOCKER_VOLUME": "team_home",
}


def plan(home: Path, environ: dict[str, str] | None = None, **changes: object) -> ContainerPlan:
    """Of a training step in the home `home`, with the settings that `environ` gives."""
    home.mkdir(exist_ok=True)
    fields: dict[str, object] = {
        "job_id": "finetune-1",
        "environment": "model",
        "arguments": ("-m", "pipeline", "finetune", "--spec", "{spec}", "--out", OUT),
        "spec": "{}",
        "deadline_s": 60,
        "claim": Claim(holder="run/task", token="one"),
        **changes,
    }
    configured = settings.load({"SLIPWAY_HOME": str(home), **(environ or {})})
    request = JobRequest.model_validate(fields)
    job = JobFolder(home / "jobs" / request.job_id)
    return ContainerPlan(configured, request, job, f"slipway/model:1@{IMAGE_ID}")


def mounted(found: ContainerPlan) -> dict[str, bool]:
    """Path inside to whether it may be written to."""
    return {mount["Target"]: not mount["ReadOnly"] for mount in found.mounts()}


# --- mounts ------------------------------------------------------------------------------------------------------


def test_a_step_sees_the_store_its_scratch_and_its_own_job(tmp_path: Path) -> None:
    """At the paths that they have outside; not the home, which holds credentials and other jobs."""
    found = plan(tmp_path / "home")
    folders = ("work", "cache", "locks", "store", "jobs/finetune-1")
    assert mounted(found) == {str(tmp_path / "home" / name): True for name in folders}
    assert all(mount["Source"] == mount["Target"] for mount in found.mounts())


@pytest.mark.parametrize(("step", "sees"), [("promote", True), ("rollout", True), ("register", False)])
def test_only_steps_that_move_what_is_served_see_the_audit_log(tmp_path: Path, step: str, sees: bool) -> None:
    """They write into it; in docker compose, too."""
    home = tmp_path / "home"
    Layout(home).create()
    Layout(home).stack_path.touch()
    arguments = ("-m", "pipeline", step, "--spec", "spec.json", "--out", "file:///store")
    assert subpaths(plan(home, IN_COMPOSE, arguments=arguments)).get("audit", False) is sees
    if step != "rollout":
        assert mounted(plan(home, arguments=arguments)).get(str(home / "audit"), False) is sees


def test_a_remote_store_is_no_folder(tmp_path: Path) -> None:
    """Nothing is made or mounted for it."""
    found = plan(tmp_path / "home", {"SLIPWAY_STORE": "s3://bucket/store"})
    assert str(tmp_path / "home" / "work") in mounted(found)
    assert str(tmp_path / "home" / "store") not in mounted(found)
    assert not (tmp_path / "home" / "store").exists()


def test_what_the_spec_names_elsewhere_can_be_read_and_not_changed(tmp_path: Path) -> None:
    """As a path or a URI, at any depth; what is not there is the step's own complaint."""
    rows, model = tmp_path / "rows with blank.jsonl", tmp_path / "model"
    rows.touch()
    model.mkdir()
    named = {"files": [{"uri": rows.as_uri()}], "model": str(model), "gone": "/nowhere/rows.jsonl"}
    seen = mounted(plan(tmp_path / "home", spec=json.dumps(named)))
    assert {path: writable for path, writable in seen.items() if not writable} == {str(rows): False, str(model): False}


def test_what_the_spec_names_in_the_store_stays_writable(tmp_path: Path) -> None:
    """It is there already: a second, read-only mount would hide the first."""
    store = tmp_path / "home" / "store"
    found = plan(tmp_path / "home", spec=json.dumps({"uri": (store / "plan" / "key").as_uri()}))
    assert mounted(found)[str(store)] is True
    assert str(store / "plan" / "key") not in mounted(found)


@pytest.mark.parametrize("above", ["home", "."])
def test_a_spec_cannot_bring_the_whole_home_in(tmp_path: Path, above: str) -> None:
    """Neither by its own name nor by that of a folder above it."""
    named = str((tmp_path / above).resolve())
    assert named not in mounted(plan(tmp_path / "home", spec=json.dumps({"uri": named})))


def test_a_rollout_of_this_machine_has_the_home_and_reads_the_checkout(tmp_path: Path) -> None:
    """It writes the fleet's state, asks supervisord and starts what runs from the checkout: docs/adr/0094."""
    seen = mounted(plan(tmp_path / "home", arguments=ROLLOUT))
    assert seen[str(tmp_path / "home")] is True
    assert seen[str(ROOT)] is False


def subpaths(found: ContainerPlan) -> dict[str, bool]:
    """Folder of the volume to whether it may be written to; each at the path that it has in the home."""
    mounts = [mount for mount in found.mounts() if mount["Source"] == "team_home"]
    for mount in mounts:
        assert mount["Target"] == f"{found.settings.home_path}/{mount['VolumeOptions']['Subpath']}"
    return {mount["VolumeOptions"]["Subpath"]: not mount["ReadOnly"] for mount in mounts}


def test_in_docker_compose_a_step_sees_folders_of_the_volume_and_not_the_volume(tmp_path: Path) -> None:
    """Not the gateway's keys, other jobs, or whatever the request names; people's data and recipes read-only."""
    home = tmp_path / "home"
    Layout(home).create()
    written = {"work": True, "cache": True, "locks": True, "jobs/finetune-1": True}
    found = plan(home, IN_COMPOSE, spec=json.dumps({"uri": str(home / "fleet")}))
    assert subpaths(found) == {**written, "data": False, "recipes": False}
    kept_here = {**IN_COMPOSE, "SLIPWAY_STORE": (home / "store").as_uri()}
    assert subpaths(plan(home, kept_here)) == {**written, "store": True, "data": False, "recipes": False}


def test_a_rollout_in_docker_compose_sees_what_the_gateway_reads(tmp_path: Path) -> None:
    """It writes the fleet's state and Envoy's configuration, and rotates the access log."""
    home = tmp_path / "home"
    Layout(home).create()
    Layout(home).stack_path.touch()
    seen = subpaths(plan(home, IN_COMPOSE, arguments=ROLLOUT))
    assert {name for name, writable in seen.items() if not writable} == {"stack.json", "signing/trusted"}
    assert seen.keys() >= {"fleet", "gateway", "logs", "cache", "work", "locks", "jobs/finetune-1"}
    assert not seen.keys() & {"airflow", "mlflow", "jobs", "recipes", "."}


def test_a_store_that_the_volume_does_not_reach_is_refused(tmp_path: Path) -> None:
    """A container would write it into its own file system and lose it."""
    with pytest.raises(SpecError, match=f"{tmp_path}/store is outside {tmp_path}/home"):
        plan(tmp_path / "home", {**IN_COMPOSE, "SLIPWAY_STORE": (tmp_path / "store").as_uri()}).mounts()


# --- secrets -----------------------------------------------------------------------------------------------------


REGISTER = ("-m", "pipeline", "register", "--spec", "{spec}", "--out", OUT)


@pytest.mark.parametrize("environ", [{}, {"SLIPWAY_SIGNING_KEY": "the key"}], ids=["in the home", "a secret"])
def test_only_the_step_that_registers_gets_the_signing_key(tmp_path: Path, environ: dict[str, str]) -> None:
    """Not one that trains, and not a rollout, which checks signatures."""
    layout = Layout(tmp_path / "home")
    layout.create()
    layout.signing_key_path.write_text("the key")
    found = {step: plan(tmp_path / "home", environ, arguments=step).secrets() for step in (REGISTER, ROLLOUT)}
    assert found[REGISTER]["SLIPWAY_SIGNING_KEY"] == "the key"
    for given in (found[ROLLOUT], plan(tmp_path / "home", environ).secrets()):
        assert "the key" not in given.values()
    for step in (REGISTER, ROLLOUT):
        seen = plan(tmp_path / "home", {**IN_COMPOSE, **environ}, arguments=step)
        assert "the key" not in seen.variables().values()
        assert not subpaths(seen).keys() & {"signing", "signing/key", "."}


# --- networks ----------------------------------------------------------------------------------------------------


def test_a_step_of_one_node_needs_no_network_of_its_own(tmp_path: Path) -> None:
    """It joins what every engine has, or what the settings name."""
    alone = plan(tmp_path / "home")
    assert (alone.network, alone.networks) == (None, ["bridge"])
    assert plan(tmp_path / "home", IN_COMPOSE).networks == ["team_jobs"]


def test_nodes_meet_in_a_network_of_their_job(tmp_path: Path) -> None:
    """In docker compose they reach MLflow and the store besides."""
    pair = plan(tmp_path / "home", nodes=2)
    assert pair.networks == [pair.network]
    composed = plan(tmp_path / "home", IN_COMPOSE, nodes=2)
    assert composed.networks == [composed.network, "team_jobs"]
    assert plan(tmp_path / "home", nodes=2, job_id="finetune-2").network != pair.network


def test_only_a_rollout_reaches_the_replicas(tmp_path: Path) -> None:
    """On this machine it shares the machine's network and processes; in docker compose it joins the fleet's."""
    local = plan(tmp_path / "home", arguments=ROLLOUT).options(0)
    assert (local["network_mode"], local["pid_mode"]) == ("host", "host")
    composed = plan(tmp_path / "home", IN_COMPOSE, arguments=ROLLOUT)
    assert composed.networks == ["team_fleet", "team_jobs"]
    assert not {"network_mode", "pid_mode"} & composed.options(0).keys()


def test_a_job_is_a_rollout_by_what_it_runs(tmp_path: Path) -> None:
    """Not by a name or a label that anybody may give it."""
    named = plan(tmp_path / "home", job_id="rollout-1", labels={"task_id": "rollout"})
    assert not named.drives_fleet
    assert "network_mode" not in named.options(0)


# --- names -------------------------------------------------------------------------------------------------------


def test_the_same_job_of_another_home_has_other_names(tmp_path: Path) -> None:
    """Two homes, or two compose projects, share an engine and may make the same artifact."""
    found = [
        plan(tmp_path / "home", nodes=2),
        plan(tmp_path / "other", nodes=2),
        plan(tmp_path / "home", IN_COMPOSE, nodes=2),
    ]
    assert len({one.network for one in found}) == 3
    assert len({one.options(0)["name"] for one in found}) == 3


def test_the_nodes_of_a_job_are_named_alike_but_for_their_rank(tmp_path: Path) -> None:
    """And are called so by each other."""
    found = plan(tmp_path / "home", nodes=2)
    first, second = found.options(0), found.options(1)
    assert (first["name"], second["name"]) == (f"{found.network}-0", f"{found.network}-1")
    assert first["hostname"] == first["name"]
    assert "finetune-1" in first["name"]


def test_the_longest_job_still_has_a_name_that_dns_takes(tmp_path: Path) -> None:
    """63 characters a label; two long ids that begin alike stay apart."""
    ids = ["x" * 61 + end for end in "ab"]
    names = [plan(tmp_path / "home", nodes=64, job_id=job_id).options(63)["name"] for job_id in ids]
    assert max(map(len, names)) <= 63
    assert names[0] != names[1]


# --- limits and privileges ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("resources", "limits"),
    [
        (StepResources(), {}),
        (StepResources(cpus=1.5), {"nano_cpus": 1_500_000_000}),
        (StepResources(memory_gb=0.2), {"mem_limit": 200_000_000, "memswap_limit": 200_000_000}),
        (StepResources(shm_gb=1), {"shm_size": 1_000_000_000}),
    ],
    ids=["none", "cpus", "memory", "shm"],
)
def test_limits_are_those_of_the_recipe(tmp_path: Path, resources: StepResources, limits: dict[str, int]) -> None:
    """In the engine's units; memory without swap, and nothing where the recipe says nothing."""
    options = plan(tmp_path / "home", resources=resources).options(0)
    known = ("nano_cpus", "mem_limit", "memswap_limit", "shm_size")
    assert {name: options[name] for name in known if name in options} == limits


@pytest.mark.parametrize(("cpus", "threads"), [(3.9, "3"), (0.2, "1")])
def test_a_node_keeps_as_many_threads_busy_as_it_has_cores(tmp_path: Path, cpus: float, threads: str) -> None:
    """Rounded down, and never none: more threads than cores only wait for each other."""
    found = plan(tmp_path / "home", resources=StepResources(cpus=cpus), nodes=2)
    assert found.variables()["SLIPWAY_CPUS"] == threads


def test_nodes_without_a_limit_share_the_machines_cores(tmp_path: Path) -> None:
    """As the processes of the other backend do."""
    shared = plan(tmp_path / "home", nodes=64).variables()["SLIPWAY_CPUS"]
    assert shared == str(max(1, (os.cpu_count() or 1) // 64))


@pytest.mark.parametrize("arguments", [ROLLOUT, ("-m", "pipeline", "plan")], ids=["rollout", "plan"])
@pytest.mark.parametrize("environ", [{}, IN_COMPOSE], ids=["local", "compose"])
def test_every_container_may_do_as_little_as_possible(
    tmp_path: Path, arguments: tuple[str, ...], environ: dict[str, str]
) -> None:
    """Nothing to write to but its mounts and /tmp, no capability, no new privilege, the owner's user, no socket."""
    options = plan(tmp_path / "home", environ, arguments=arguments).options(0)
    assert options["read_only"] is True
    assert options["cap_drop"] == ["ALL"]
    assert options["security_opt"] == ["no-new-privileges"]
    assert options["user"] == f"{os.getuid()}:{os.getgid()}"
    assert not {"privileged", "cap_add", "devices", "ports", "volumes"} & options.keys()
    assert "docker.sock" not in str(options)


# --- what it is told ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("environ", [{}, IN_COMPOSE], ids=["local", "compose"])
def test_no_secret_is_in_what_the_engine_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environ: dict[str, str]
) -> None:
    """Neither a variable nor a label nor a command line: `docker inspect` shows all of them."""
    for name in ("AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "HF_TOKEN"):
        monkeypatch.setenv(name, f"the-secret-{name}")
    for arguments in (ROLLOUT, ("-m", "pipeline", "plan")):
        assert "the-secret" not in str(plan(tmp_path / "home", environ, arguments=arguments).options(0))


def test_a_container_runs_the_image_by_its_id_and_knows_its_name(tmp_path: Path) -> None:
    """A tag may move between two nodes; the manifest names both."""
    options = plan(tmp_path / "home").options(0)
    assert options["image"] == IMAGE_ID
    assert options["environment"]["SLIPWAY_IMAGE"] == f"slipway/model:1@{IMAGE_ID}"


def test_labels_say_whose_it_is(tmp_path: Path) -> None:
    """The home and the job, by which it is found and removed, and for people the task that wanted it."""
    found = plan(tmp_path / "home", labels={"task_id": "finetune"})
    assert found.labels(1) == {
        HOME_LABEL: home_label(found.settings),
        JOB_LABEL: "finetune-1",
        RANK_LABEL: "1",
        "slipway.task_id": "finetune",
    }


def test_docker_compose_counts_its_steps_among_its_own(tmp_path: Path) -> None:
    """So that `docker compose up --remove-orphans` does not remove them."""
    assert plan(tmp_path / "home", IN_COMPOSE).labels(0)["com.docker.compose.project"] == "team"


def test_a_label_of_a_task_cannot_claim_another_home(tmp_path: Path) -> None:
    """The backend's own labels win."""
    found = plan(tmp_path / "home", labels={"home": "another", "job": "another"})
    assert found.labels(0)[HOME_LABEL] == home_label(found.settings)
    assert found.labels(0)[JOB_LABEL] == "finetune-1"


def test_mlflow_is_where_containers_find_it(tmp_path: Path) -> None:
    """And stays unknown to a step that was not told of any."""
    environ = {"SLIPWAY_JOBS_TRACKING_URI": "http://172.17.0.1:5000"}
    told = plan(tmp_path / "home", environ, variables={"MLFLOW_TRACKING_URI": "http://127.0.0.1:5000"}).variables()
    assert told["MLFLOW_TRACKING_URI"] == "http://172.17.0.1:5000"
    assert "MLFLOW_TRACKING_URI" not in plan(tmp_path / "home", environ).variables()


def test_a_rollout_in_docker_compose_asks_the_agent(tmp_path: Path) -> None:
    """It has the agent's socket, by its volume, and no other way to start a container."""
    found = plan(tmp_path / "home", IN_COMPOSE, arguments=ROLLOUT)
    assert found.variables()["SLIPWAY_BACKEND"] == "agent"
    assert found.variables()["SLIPWAY_AGENT"] == "/run/agent/agent.sock"
    assert [mount["Source"] for mount in found.mounts() if mount["Target"] == "/run/agent"] == ["team_agent"]
    assert "team_agent" not in str(plan(tmp_path / "home", IN_COMPOSE).options(0))


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("/data/rows.jsonl", "/data/rows.jsonl"),
        ("file:///with%20blank/%231", "/with blank/#1"),
        ("s3://bucket/rows", None),
        ("org/model", None),
        ("/one\n/two", None),
        ("/nul\0", None),
    ],
)
def test_a_path_is_told_from_other_text(text: str, path: Any) -> None:
    """A text of several lines is no path, even if it begins like one."""
    assert local_path(text) == (Path(path) if path else None)
