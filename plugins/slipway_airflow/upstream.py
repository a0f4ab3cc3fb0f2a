"""What a step's spec is built from: the DAG run, its parameters, and the artifacts of the tasks before."""

from dataclasses import dataclass, field
from typing import Any, TypeVar

from airflow.sdk import Context

from pipeline.artifacts import read_manifest
from pipeline.contracts.base import ArtifactRef, Result, Spec
from pipeline.contracts.recipe import StepResources
from pipeline.errors import SpecError
from pipeline.settings import Settings

R = TypeVar("R", bound=Result)


@dataclass(frozen=True, kw_only=True)
class Work:
    """One step's job, ready to be keyed and submitted."""

    spec: Spec
    deadline_s: float
    release: str
    """The MLflow experiment of its runs."""
    nodes: int = 1
    min_nodes: int | None = None
    resources: StepResources = field(default_factory=StepResources)
    resources_field: str = ""


class Upstream:
    """Reads results from manifests, by the references in XCom: nothing else travels between tasks."""

    def __init__(self, context: Context, settings: Settings) -> None:
        self.context = context
        self.settings = settings

    @property
    def run_id(self) -> str:
        return str(self.context["run_id"])

    @property
    def params(self) -> dict[str, Any]:
        return dict(self.context["params"])

    def xcom(self, task_id: str) -> Any:
        return self.context["ti"].xcom_pull(task_ids=task_id)

    def find(self, task_id: str) -> ArtifactRef | None:
        """The artifact of a task; None if it made none (skipped, failed)."""
        value = self.xcom(task_id)
        return ArtifactRef.model_validate(value) if value else None

    def ref(self, task_id: str) -> ArtifactRef:
        found = self.find(task_id)
        if found is None:
            raise SpecError(f"task {task_id} of run {self.run_id} left no artifact; clear it to run it again")
        return found

    def result(self, task_id: str, kind: type[R]) -> R:
        """The result in the task's manifest, its digests checked."""
        return kind.model_validate(read_manifest(self.ref(task_id)).result)
