"""The docker backend keeps the promises of every backend, with real containers, and those of its own."""

import json
import mmap
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import containers, settings
from pipeline.contracts.recipe import StepResources
from pipeline.errors import SpecError
from pipeline.settings import ROOT, Settings
from slipway_airflow.backends.base import Backend, JobRequest, JobStatus
from slipway_airflow.backends.docker import DockerBackend
from tests.contracts.backend_conformance import (
    FOREVER,
    BackendConformance,
    OpenBackend,
    finished,
    processes_with,
    request,
    wait_for,
    whole_log,
)

pytestmark = [pytest.mark.integration, pytest.mark.needs("docker")]

BASE_IMAGE = "python:3.11-slim-bookworm"
"""A Python and nothing of ours: the runner comes with the job."""
SUBMIT = f"""
import sys
from pipeline import settings
from slipway_airflow.backends.base import JobRequest
from slipway_airflow.backends.docker import DockerBackend
DockerBackend(settings.load(), image="{BASE_IMAGE}").submit(JobRequest.model_validate_json(sys.stdin.read()))
"""


@pytest.fixture
def configured(tmp_path: Path) -> Iterator[Settings]:
    """The settings of a home whose containers are gone after the test, whatever happened."""
    home_path = tmp_path / "home"
    home_path.mkdir()
    configured = settings.load({"SLIPWAY_HOME": str(home_path)})
    yield configured
    containers.remove_all(containers.connect(), configured)


@pytest.fixture
def volume(configured: Settings) -> Iterator[str]:
    """A named volume that holds the home, as in docker compose."""
    name = f"slipway-test-{uuid.uuid4().hex[:8]}"
    options = ("type=none", "o=bind", f"device={configured.home_path}")
    docker("volume", "create", name, *(part for option in options for part in ("--opt", option)))
    yield name
    containers.remove_all(containers.connect(), configured.model_copy(update={"docker_volume": name}))
    docker("volume", "rm", name)


@pytest.fixture
def open_backend(configured: Settings, tmp_path: Path) -> OpenBackend:
    def open_it() -> Backend:
        return DockerBackend(configured, image=BASE_IMAGE, more_mounts=(tmp_path,))

    return open_it


@pytest.fixture
def kill_runner(configured: Settings) -> Callable[[str], None]:
    def kill(job_id: str) -> None:
        docker("kill", "--signal", "KILL", containers.node_name(configured, job_id, 0))

    return kill


@pytest.fixture
def submit_elsewhere(configured: Settings) -> Callable[[JobRequest], None]:
    def submit(job: JobRequest) -> None:
        environment = {
            **os.environ,
            "SLIPWAY_HOME": str(configured.home_path),
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "plugins")]),
        }
        subprocess.run(
            [sys.executable, "-c", SUBMIT], input=job.model_dump_json(), env=environment, text=True, check=True
        )

    return submit


def docker(*arguments: str) -> str:
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=True).stdout


def inspected(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(docker("inspect", name))[0]
    return found


def left_of(job_id: str) -> list[str]:
    """The names of the job's containers and networks."""
    label = f"label={containers.JOB_LABEL}={job_id}"
    names = docker("ps", "--all", "--filter", label, "--format", "{{.Names}}")
    return (names + docker("network", "ls", "--filter", label, "--format", "{{.Name}}")).split()


class TestDockerBackend(BackendConformance):
    """All of them."""

    def test_a_container_may_do_nothing_but_its_work(self, open_backend: OpenBackend, configured: Settings) -> None:
        """No root file system to write to, no capability, no new privilege, limits as asked, files of the owner."""
        limits = StepResources(cpus=0.5, memory_gb=0.2, shm_gb=0.1)
        program = (
            "import os; f = os.statvfs('/dev/shm'); print(f.f_blocks * f.f_frsize, os.access('/', os.W_OK));"
            "print([l.split()[1] for l in open('/proc/self/status') if l.startswith(('CapEff', 'NoNewPrivs'))])"
        )
        job = request(f"{program}; {FOREVER}", resources=limits)
        backend = open_backend()
        backend.submit(job)
        wait_for("it runs", lambda: "waiting" in whole_log(backend, job.job_id))
        said = whole_log(backend, job.job_id).splitlines()
        shared, root_is_writable = said[0].split()
        assert abs(int(shared) - 100_000_000) < mmap.PAGESIZE
        assert root_is_writable == "False"
        assert said[1] == "['0000000000000000', '1']"
        host = inspected(containers.node_name(configured, job.job_id, 0))["HostConfig"]
        assert (host["NanoCpus"], host["Memory"], host["ShmSize"]) == (500_000_000, 200_000_000, 100_000_000)
        assert (host["ReadonlyRootfs"], host["NetworkMode"]) == (True, "bridge")
        assert (configured.home_path / "jobs" / job.job_id / "log").stat().st_uid == os.getuid()
        backend.cancel(job.job_id)
        assert left_of(job.job_id) == []

    def test_a_secret_is_in_no_inspection_and_no_command_line(
        self, open_backend: OpenBackend, configured: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It lies in a file until the container has begun, and then only in the program's environment."""
        secret = f"secret-{uuid.uuid4().hex}"
        monkeypatch.setenv("HF_TOKEN", secret)
        job = request(f"import os; print(len(os.environ['HF_TOKEN'])); {FOREVER}", nodes=2)
        backend = open_backend()
        backend.submit(job)
        wait_for("both nodes run", lambda: whole_log(backend, job.job_id).count("waiting") == 2)
        assert f"{len(secret)}\n" in whole_log(backend, job.job_id)
        names = [containers.node_name(configured, job.job_id, rank) for rank in range(2)]
        assert secret not in docker("inspect", *names)
        assert not processes_with(secret)
        assert not list((configured.home_path / "jobs" / job.job_id).glob("secrets*"))
        backend.cancel(job.job_id)

    @pytest.mark.parametrize("code", ["pass", "import sys; sys.exit(65)"])
    def test_a_job_that_is_over_leaves_no_container_and_no_network(self, open_backend: OpenBackend, code: str) -> None:
        """Whoever sees its end removes them."""
        job = request(code, nodes=2)
        backend = open_backend()
        backend.submit(job)
        assert len(left_of(job.job_id)) == 3
        finished(backend, job.job_id)
        assert left_of(job.job_id) == []

    def test_a_job_over_its_memory_limit_says_what_to_raise(self, open_backend: OpenBackend) -> None:
        """It would only happen again, so it is not tried again; the other nodes end with it."""
        code = (
            "import os, time; time.sleep(0.5)\n"
            f"if os.environ['SLIPWAY_NODE_RANK'] == '0':\n {FOREVER}\n"
            "kept = []\nwhile True: kept.append(bytearray(10 << 20)); time.sleep(0.05)"
        )
        limits = StepResources(memory_gb=0.1)
        job = request(code, nodes=2, resources=limits, resources_field="resources.finetune")
        backend = open_backend()
        backend.submit(job)
        assert finished(backend, job.job_id) == JobStatus(state="failed", exit_code=64)
        log = whole_log(backend, job.job_id)
        assert "error 64 MemoryLimit: node 1 needed more memory than its limit of 0.10 GB: it used 0.10 GB" in log
        assert "raise `resources.finetune.memory_gb` in the recipe" in log
        print(next(line for line in log.splitlines() if "MemoryLimit" in line))
        assert not processes_with(job.job_id)

    def test_a_node_that_is_cut_off_from_the_network_ends_the_job(
        self, open_backend: OpenBackend, configured: Settings
    ) -> None:
        """Open connections only hang then, so the others would wait for it for minutes. A retry gets a new network."""
        job = request(FOREVER, nodes=2)
        backend = open_backend()
        backend.submit(job)
        wait_for("both nodes run", lambda: whole_log(backend, job.job_id).count("waiting") == 2)
        name = containers.job_name(configured, job.job_id)
        began = time.monotonic()
        docker("network", "disconnect", name, f"{name}-1")
        assert finished(backend, job.job_id) == JobStatus(state="failed", exit_code=75)
        print(f"noticed, and the job ended, after {time.monotonic() - began:.1f} s")
        assert "node 1 was cut off from the job's network" in whole_log(backend, job.job_id)
        assert left_of(job.job_id) == []

    def test_orphans_of_this_home_are_reaped_and_nothing_else(
        self, open_backend: OpenBackend, configured: Settings, tmp_path: Path
    ) -> None:
        """A job whose record is gone is nobody's; one of another home is somebody's."""
        other = settings.load({"SLIPWAY_HOME": str(tmp_path / "other")})
        other.home_path.mkdir()
        orphan, foreign, wanted = request(FOREVER, nodes=2), request(FOREVER), request(FOREVER)
        backend, others = open_backend(), DockerBackend(other, image=BASE_IMAGE)
        backend.submit(orphan)
        others.submit(foreign)
        (configured.home_path / "jobs" / orphan.job_id / "request.json").unlink()
        backend.submit(wanted)
        assert left_of(orphan.job_id) == []
        assert others.status(foreign.job_id).state == backend.status(wanted.job_id).state == "running"
        assert containers.remove_all(backend.engine, other) == 1
        backend.cancel(wanted.job_id)

    def test_two_homes_run_the_same_job_side_by_side(
        self, open_backend: OpenBackend, configured: Settings, tmp_path: Path
    ) -> None:
        """Its id comes from what it makes, which may be the same in both; ending one leaves the other alone."""
        other = settings.load({"SLIPWAY_HOME": str(tmp_path / "other")})
        other.home_path.mkdir()
        job = request(FOREVER, nodes=2)
        ours, theirs = open_backend(), DockerBackend(other, image=BASE_IMAGE)
        ours.submit(job)
        theirs.submit(job)
        assert len(left_of(job.job_id)) == 6
        ours.cancel(job.job_id)
        assert theirs.status(job.job_id).state == "running"
        theirs.cancel(job.job_id)
        assert left_of(job.job_id) == []

    def test_an_image_that_is_not_there_is_named(self, configured: Settings) -> None:
        """With how to make it; nothing is started."""
        job = request(FOREVER)
        with pytest.raises(SpecError, match=r"slipway-test/none:1.*make images"):
            DockerBackend(configured, image="slipway-test/none:1").submit(job)
        assert left_of(job.job_id) == []

    def test_of_a_home_in_a_volume_a_step_sees_its_own_folders(self, configured: Settings, volume: str) -> None:
        """Not the other jobs, nor the keys that lie in the home; what it writes is in the volume afterwards."""
        home = configured.home_path
        for name in ("fleet", "recipes", "jobs/other"):
            (home / name).mkdir(parents=True)
        code = (
            f"import os; h = {str(home)!r}; print(sorted(os.listdir(h)), os.listdir(h + '/jobs'));"
            "print(os.access(h + '/recipes', os.W_OK)); open(h + '/cache/made', 'w').write('here')"
        )
        job = request(code)
        backend = DockerBackend(configured.model_copy(update={"docker_volume": volume}), image=BASE_IMAGE)
        backend.submit(job)
        assert finished(backend, job.job_id).state == "succeeded", whole_log(backend, job.job_id)
        folders = ["cache", "jobs", "locks", "recipes", "store", "work"]
        assert whole_log(backend, job.job_id).splitlines() == [f"{folders} {[job.job_id]}", "False"]
        assert (home / "cache" / "made").read_text() == "here"

    def test_what_a_spec_names_outside_the_home_can_be_read(self, open_backend: OpenBackend, tmp_path: Path) -> None:
        """At the path that it has outside, and not written."""
        folder = ROOT / "infra" / "recipes"
        code = f"import os; p = {str(folder)!r}; print(len(os.listdir(p)) > 0, os.access(p, os.W_OK))"
        job = request(code, spec=json.dumps({"inputs": [{"uri": folder.as_uri()}]}))
        backend = open_backend()
        backend.submit(job)
        finished(backend, job.job_id)
        assert whole_log(backend, job.job_id) == "True False\n"
