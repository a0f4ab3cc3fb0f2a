"""What every backend promises: jobs that outlive whoever submitted them, and are found again by their id.

tests/contracts/backend_conformance.py holds a backend to it.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Protocol

from pydantic import Field, StringConstraints

from pipeline.contracts.base import Contract, sha256_hex
from pipeline.contracts.recipe import StepResources

EXIT_DEADLINE = 124
"""The job ran past its own deadline (the number that timeout(1) uses)."""
EXIT_CANCELLED = 143
"""The job was ended on request."""

JobId = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,61}$")]
"""Also a valid file name and DNS label."""
JobState = Literal["running", "succeeded", "failed", "cancelled", "lost", "unknown"]


class Claim(Contract):
    """Who wants a job. Several may want the same one; it is cancelled when the last of them lets go."""

    holder: str
    """The same for all tries of one task instance."""
    token: str
    """Of one try. A try that has been replaced can no longer let go of what its successor claimed."""


class JobRequest(Contract):
    """What to run. A backend adds to it only where: an interpreter, a container, a cluster."""

    job_id: JobId
    environment: Literal["control", "model", "serve"]
    """Whose Python interpreter (or image) runs it."""
    arguments: tuple[str, ...]
    """Of the interpreter. The argument `{spec}` becomes the path of a file that holds `spec`."""
    spec: str
    """The step's spec as JSON."""
    deadline_s: Annotated[float, Field(gt=0)]
    """From the job's start. It belongs to the job: it holds when nobody is watching."""
    nodes: Annotated[int, Field(ge=1, le=64)] = 1
    """Copies that run side by side, told apart by SLIPWAY_NODE_RANK."""
    min_nodes: Annotated[int, Field(ge=1, le=64)] | None = None
    """The job goes on while so many nodes live, and those that die are started again a few times; they meet at
    SLIPWAY_RENDEZVOUS, which outlives each of them. None: the end of one node is the end of all."""
    variables: dict[str, str] = Field(default_factory=dict)
    """Environment variables. No secrets: a backend passes those by its own means."""
    resources: StepResources = StepResources()
    """What each node may use at most, where the backend can hold it to that."""
    resources_field: str = ""
    """Where in the recipe `resources` are, e.g. `resources.finetune`: for the message when they do not suffice."""
    claim: Claim
    labels: dict[str, str] = Field(default_factory=dict)
    """For people: which DAG, run and task wanted it."""


class JobHandle(Contract):
    """An accepted job."""

    job_id: JobId
    attached: bool
    """True: it ran (or had succeeded) already, and nothing was started."""
    log_offset: int
    """Where the log of this attempt begins."""


class JobStatus(Contract):
    state: JobState
    exit_code: int | None = None


class Backend(Protocol):
    """Submits, watches and ends jobs. Every method may be called from any process, at any time, again."""

    def submit(self, request: JobRequest) -> JobHandle:
        """Starts the job, or attaches to it when it runs or has succeeded. A failed, cancelled or lost one starts
        anew.

        Raises:
            TransientError: it could not be started now.
        """

    def status(self, job_id: str) -> JobStatus: ...

    def logs(self, job_id: str, offset: int, limit_bytes: int = 1 << 16) -> tuple[str, int]:
        """Whole lines from `offset` on, at most about `limit_bytes` of them, and the next offset."""

    def cancel(self, job_id: str, claim: Claim | None = None) -> bool:
        """Ends the job and all of its processes, and waits until they are gone.

        With a `claim` only that claim is let go, and the job ends when it was the last. True if the job was ended.
        """

    def claims_of(self, holder: str) -> list[tuple[str, Claim]]:
        """The ids of the jobs that `holder` has claimed and not let go of, and its claims."""

    def forget(self, job_id: str) -> None:
        """Drops the record of a job that has ended, so that the next `submit` starts it."""

    def reap(self, keep_s: float) -> int:
        """Ends what lost jobs left running, drops the records of jobs that ended `keep_s` seconds ago; how many."""


def job_id(step: str, out_uri: str) -> str:
    """The same for everyone who wants the same artifact, so that two runs share one job instead of colliding."""
    return f"{step.replace('_', '-')}-{sha256_hex(out_uri.encode())[:20]}"


def task_labels(task_instance: Any) -> dict[str, str]:
    """Which task instance of Airflow it is, in words."""
    return {
        "dag_id": task_instance.dag_id,
        "run_id": task_instance.run_id,
        "task_id": task_instance.task_id,
        "map_index": str(task_instance.map_index),
    }


def holder_of(labels: Mapping[str, str]) -> str:
    """The holder of a task instance's claims, from its `task_labels`."""
    return "/".join(labels.values())
