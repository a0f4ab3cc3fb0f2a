"""The first steps of a release, submitted to a backend one after the other, as the release DAG wires them."""

import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from pipeline import artifacts
from pipeline.contracts import release
from pipeline.contracts.base import ArtifactRef, Spec, step_key
from pipeline.contracts.manifest import Manifest
from pipeline.contracts.recipe import StepResources
from pipeline.contracts.specs import STEPS, FinetuneSpec, PlanResult, PlanSpec
from pipeline.settings import Settings
from slipway_airflow.backends.base import Backend, Claim, JobRequest, job_id
from tests.contracts.backend_conformance import whole_log

DEADLINE_S = 300.0
RECIPE = {
    "name": "chain",
    "dataset": {"generate": {"kind": "support-intents", "train_rows": 400, "eval_rows": 60}},
    "base_model": {
        "init": {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 64, "num_layers": 1, "num_heads": 2}
    },
    "validation": {"min_rows": 100, "max_duplicate_fraction": 0.2},
    "finetune": {"nodes": 2, "epochs": 4, "batch_size": 16, "max_seq_len": 64, "checkpoint_every_steps": 15},
}
"""The weights start at random and dropout is on by default nowhere: the same spec gives the same model."""


@dataclass
class Chain:
    """Runs steps on `backend` in the home of `settings`."""

    settings: Settings
    backend: Backend
    recipe: dict[str, Any] = field(default_factory=lambda: RECIPE)
    seconds: dict[str, float] = field(default_factory=dict)

    def request(self, step: str, spec: Spec, **changes: Any) -> JobRequest:
        key = step_key(step, STEPS[step].version, spec)
        out_uri = f"{self.settings.store_uri}/{step}/{key}"
        fields = {
            "job_id": job_id(step, out_uri),
            "environment": STEPS[step].environment,
            "arguments": ("-m", "pipeline", step, "--spec", "{spec}", "--out", out_uri),
            "spec": spec.model_dump_json(),
            "deadline_s": DEADLINE_S,
            "variables": {"SLIPWAY_HOME": str(self.settings.home_path), "SLIPWAY_STORE": self.settings.store_uri},
            "claim": Claim(holder="chain", token=uuid.uuid4().hex),
            "resources": StepResources(memory_gb=8, shm_gb=1),
            **changes,
        }
        return JobRequest.model_validate(fields)

    def run(self, step: str, spec: Spec, **changes: Any) -> ArtifactRef:
        """To its end, which must be a success."""
        request = self.request(step, spec, **changes)
        began = time.monotonic()
        self.backend.submit(request)
        self.wait(request)
        self.seconds[step] = time.monotonic() - began
        assert self.backend.status(request.job_id).state == "succeeded", whole_log(self.backend, request.job_id)
        return self.manifest(request).ref(request.arguments[-1])

    def wait(self, request: JobRequest) -> None:
        until = time.monotonic() + DEADLINE_S
        while self.backend.status(request.job_id).state == "running":
            assert time.monotonic() < until, whole_log(self.backend, request.job_id)
            time.sleep(0.1)

    def manifest(self, request: JobRequest) -> Manifest:
        return artifacts.read_manifest(request.arguments[-1])

    def planned(self, request_id: str = "chain") -> PlanResult:
        ref = self.run("plan", PlanSpec(recipe=self.recipe, request_id=request_id))
        return PlanResult.model_validate(artifacts.read_manifest(ref).result)

    def finetune_spec(self, plan: PlanResult) -> FinetuneSpec:
        return release.finetune_spec(plan, self.run("validate", release.validate_spec(plan)))
