"""Jobs as containers: one a node, on this machine's Docker engine (or the one that DOCKER_HOST names).

home/jobs/{job_id}/, beside what job_folders.py describes:
  runner/        the containers' first process        secrets.{rank}.json   until that process has read it
  stopping       one node has failed, the others are being ended

While a job runs, and until somebody has looked at its end, its containers are the truth: whoever looks (`status`) ends
the other nodes of a failed one, writes down the exit code, and removes containers and network. Each node's runner
(container_runner.py) keeps the deadline by itself.
"""

import dataclasses
import json
import os
import shutil
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from docker.errors import NotFound

from pipeline import containers, images
from pipeline.containers import JOB_LABEL, RANK_LABEL, engine_errors, gone_is_fine
from pipeline.errors import EXIT_BAD_SPEC, EXIT_TRANSIENT, SpecError
from pipeline.settings import Settings
from slipway_airflow.backends import process_runner
from slipway_airflow.backends.base import JobHandle, JobRequest, JobStatus
from slipway_airflow.backends.container_plan import ContainerPlan
from slipway_airflow.backends.job_folders import FolderBackend, JobFolder

STOP_WAIT_S = process_runner.GRACE_S + 5
LOST_CODES = (137, 255)
"""Of a container whose first process was killed, or whose engine died: nobody knows how the node would have ended."""
POLL_S = 0.1


@dataclass(frozen=True)
class Node:
    """A container, as the engine describes it."""

    id: str
    rank: int
    state: str
    networks: frozenset[str]
    code: int = 0
    """Of one that is over."""
    out_of_memory: bool = False
    finished_at: str = ""

    @property
    def runs(self) -> bool:
        return self.state in ("running", "paused", "restarting")


class DockerBackend(FolderBackend):
    """Implements `base.Backend`.

    Args:
        image: runs every environment, instead of the images of this release.
        more_mounts: folders that every job may write to, beside its own.
    """

    def __init__(self, settings: Settings, *, image: str | None = None, more_mounts: tuple[Path, ...] = ()) -> None:
        super().__init__(settings.home_path / "jobs")
        self.settings = settings
        self.image = image
        self.more_mounts = more_mounts

    @cached_property
    def engine(self) -> Any:
        """Connected to when it is needed: an engine that is away for a while must not end whoever waits for a job."""
        return containers.connect()

    def submit(self, request: JobRequest) -> JobHandle:
        if request.min_nodes is not None:
            raise SpecError(
                f"finetune.min_nodes is {request.min_nodes}, but containers do not come back one by one: leave"
                " min_nodes out, so that the next try goes on from the last checkpoint, or run steps as processes"
                " (SLIPWAY_BACKEND=process)"
            )
        return super().submit(request)

    def reap(self, keep_s: float) -> int:
        containers.remove_orphans(self.engine, self.settings)
        return super().reap(keep_s)

    # --- starting ---

    def _launch(self, job: JobFolder, request: JobRequest) -> int:
        containers.remove_orphans(self.engine, self.settings)
        plan = ContainerPlan(self.settings, request, job, self._image(request.environment), self.more_mounts)
        begin = job.begin(
            request,
            interpreter="python",
            first_node=containers.node_name(self.settings, job.job_id, 0),
            directory=None,
            memory_bytes=plan.memory_bytes,
            memory_field=f"{request.resources_field or 'resources.STEP'}.memory_gb",
        )
        self._write_folder(job, request.nodes, plan.secrets())
        try:
            self._start(plan)
        except BaseException:
            self._clear(job)
            raise
        return begin

    def _image(self, environment: str) -> str:
        name = self.image or images.image_name(environment, self.settings)
        with engine_errors(f"use the image {name}"):
            return f"{name}@{self.engine.images.get(name).id}"

    def _write_folder(self, job: JobFolder, nodes: int, secrets: dict[str, str]) -> None:
        """What the runners read, for whoever owns the home to read."""
        sources = {"__main__.py": "container_runner.py", "process_runner.py": "process_runner.py"}
        runner = job.path / "runner"
        runner.unlink() if runner.is_symlink() else shutil.rmtree(runner, ignore_errors=True)
        runner.mkdir()
        for name, source in sources.items():
            shutil.copyfile(Path(__file__).with_name(source), runner / name)
        for rank in range(nodes):
            path = job.path / f"secrets.{rank}.json"
            path.unlink(missing_ok=True)
            path.touch(mode=0o600, exist_ok=False)
            path.write_text(json.dumps(secrets))
        home = self.settings.home_path.stat()
        if home.st_uid != os.geteuid():
            for path in (job.path, *job.path.rglob("*")):
                os.chown(path, home.st_uid, home.st_gid, follow_symlinks=False)

    def _start(self, plan: ContainerPlan) -> None:
        job_id = plan.job.job_id
        if plan.network:
            with engine_errors(f"make the network {plan.network}"):
                self.engine.networks.create(
                    plan.network, labels=plan.labels(0), internal=self.settings.docker_network is not None
                )
        created = []
        for rank in range(plan.request.nodes):
            with engine_errors(f"make the container of node {rank} of job {job_id}"):
                created.append(self.engine.containers.create(**plan.options(rank)))
        for network in plan.networks[1:]:
            with engine_errors(f"connect job {job_id} to the network {network}"):
                for container in created:
                    self.engine.networks.get(network).connect(container)
        for container in created:
            with engine_errors(f"start container {container.name}"):
                container.start()

    # --- looking ---

    def _state(self, job: JobFolder) -> JobStatus:
        if ended := job.ended():
            return ended
        request = job.request()
        nodes = self._nodes(job.job_id)
        if len(nodes) < request["nodes"] or any(node.state == "created" for node in nodes):
            return JobStatus(state="lost")
        if cut_off := self._cut_off(job, nodes):
            return self._conclude(job, EXIT_TRANSIENT, f"error {EXIT_TRANSIENT} JobLost: {cut_off}")
        if all(node.runs for node in nodes):
            return JobStatus(state="running")
        nodes = self._inspected(nodes)
        if any(node.code for node in nodes):
            return self._judge(job, self._last_words(nodes))
        if any(node.runs for node in nodes):
            return JobStatus(state="running")
        return self._conclude(job, 0)

    def _last_words(self, nodes: list[Node]) -> list[Node]:
        """The nodes again, after those that still run have had a moment to say what they died of."""
        until = time.monotonic() + process_runner.VERDICT_WAIT_S
        while time.monotonic() < until and any(node.runs for node in nodes) and not _named_cause(nodes):
            time.sleep(POLL_S)
            nodes = self._inspected(nodes)
        return nodes

    def _judge(self, job: JobFolder, nodes: list[Node]) -> JobStatus:
        """Of a job with a failed node: what a node said about the cause counts first, then a kill, then the first."""
        failed = sorted((node for node in nodes if node.code), key=lambda node: node.finished_at)
        starved = next((node for node in failed if node.out_of_memory and node.code in LOST_CODES), None)
        killed = next((node for node in failed if node.code in LOST_CODES), None)
        if cause := _named_cause(failed):
            return self._conclude(job, cause.code)
        if starved and job.request()["memory_bytes"]:
            return self._conclude(job, EXIT_BAD_SPEC, _starved_message(job.request(), starved))
        if killed:
            job.say(
                f"error {EXIT_TRANSIENT} JobLost: the container of node {killed.rank} was killed from outside"
                f" (exit code {killed.code})"
            )
            self._end_nodes(job)
            return JobStatus(state="lost")
        return self._conclude(job, failed[0].code)

    def _conclude(self, job: JobFolder, code: int, message: str = "") -> JobStatus:
        """Ends what still runs, writes down how the job ended, and removes its containers."""
        self._end_nodes(job)
        if message:
            job.say(message)
        job.finish(code)
        self._clear(job)
        ended = job.ended()
        assert ended is not None
        return ended

    def _cut_off(self, job: JobFolder, nodes: list[Node]) -> str:
        """Says which running node has been taken out of the job's network: the others would wait for it for minutes."""
        network = containers.job_name(self.settings, job.job_id)
        lonely = [node.rank for node in nodes if len(nodes) > 1 and node.runs and network not in node.networks]
        return f"node {lonely[0]} was cut off from the job's network {network}" if lonely else ""

    def _nodes(self, job_id: str) -> list[Node]:
        labels = [*containers.of_home(self.settings)[:1], f"{JOB_LABEL}={job_id}"]
        with engine_errors(f"look at job {job_id}"):
            found = self.engine.api.containers(all=True, filters={"label": labels})
        return sorted((_listed(entry) for entry in found), key=lambda node: node.rank)

    def _inspected(self, nodes: list[Node]) -> list[Node]:
        """With the exit codes of those that are over."""
        with engine_errors("look at a container"):
            return [self._with_end(node) for node in nodes]

    def _with_end(self, node: Node) -> Node:
        """One that somebody has removed was killed from outside."""
        try:
            state = self.engine.api.inspect_container(node.id)["State"]
        except NotFound:
            return dataclasses.replace(node, state="removed", code=min(LOST_CODES))
        return dataclasses.replace(
            node,
            state=state["Status"],
            code=0 if state["Running"] else state["ExitCode"],
            out_of_memory=state["OOMKilled"],
            finished_at=state["FinishedAt"],
        )

    # --- ending ---

    def _stop(self, job: JobFolder) -> None:
        self._end_nodes(job)

    def _end_nodes(self, job: JobFolder) -> None:
        """Asks those that run, until they have ended or their time is over; `_clear` kills what is left."""
        if not (job.path / "cancelled").exists():
            job.mark("stopping")
        until = time.monotonic() + STOP_WAIT_S
        while running := [node for node in self._nodes(job.job_id) if node.runs]:
            if time.monotonic() > until:
                return
            for node in running:
                # Again and again: a runner that has only just begun does not hear the first.
                with gone_is_fine(), engine_errors(f"end node {node.rank} of job {job.job_id}"):
                    self.engine.api.kill(node.id, "SIGTERM")
            time.sleep(POLL_S)

    def _clear(self, job: JobFolder) -> None:
        containers.remove_job(self.engine, self.settings, job.job_id)
        for path in (job.path / "stopping", *job.path.glob("secrets.*.json")):
            path.unlink(missing_ok=True)


def _named_cause(nodes: list[Node]) -> Node | None:
    return next((node for node in nodes if node.code in process_runner.VERDICTS), None)


def _starved_message(request: dict[str, Any], node: Node) -> str:
    limit = f"{request['memory_bytes'] / 1e9:.2f} GB"
    return (
        f"error {EXIT_BAD_SPEC} MemoryLimit: node {node.rank} needed more memory than its limit of {limit}, and the"
        f" kernel killed all of it; raise `{request['memory_field']}` in the recipe, or make the work smaller"
    )


def _listed(entry: dict[str, Any]) -> Node:
    return Node(
        id=entry["Id"],
        rank=int(entry["Labels"][RANK_LABEL]),
        state=entry["State"],
        networks=frozenset(entry["NetworkSettings"]["Networks"]),
    )
