"""What the agent may be asked for. Whoever can reach its socket can run a step or a replica, and no other program.

A request names no image, no mount, no network and no privilege: the agent's own settings decide those.
"""

import re

from pipeline.contracts.specs import STEPS
from pipeline.errors import SpecError
from pipeline.fleet.vllm import ReplicaPlan
from pipeline.settings import Settings
from slipway_airflow.backends.base import JobRequest

VARIABLES = frozenset(
    {
        "MLFLOW_TRACKING_URI",
        "SLIPWAY_HOME",
        "SLIPWAY_RELEASE",
        "SLIPWAY_S3_ENDPOINT",
        "SLIPWAY_STORE",
        "SLIPWAY_VENVS",
    }
)
LABELS = frozenset({"dag_id", "run_id", "task_id", "map_index", "step"})
REPLICA_NAME = re.compile(r"^replica-[a-z0-9][a-z0-9-]{0,62}-v[0-9]+-g[0-9]+-[0-9]+$")
REPLICA_PORT = 8000
"""Every replica has an address of its own."""


def check_request(request: JobRequest, settings: Settings) -> None:
    """Refuses everything but `python -m pipeline STEP --spec {spec} --out STORE/STEP/KEY`.

    Raises:
        SpecError: names what is not allowed.
    """
    step = request.arguments[2] if len(request.arguments) > 2 else ""
    out_uri = request.arguments[-1] if request.arguments else ""
    expected = ("-m", "pipeline", step, "--spec", "{spec}", "--out", out_uri)
    if step not in STEPS or request.arguments != expected:
        raise SpecError(f"the agent runs steps, not {' '.join(request.arguments)!r}; expected {' '.join(expected)!r}")
    if request.environment != STEPS[step].environment:
        raise SpecError(f"step {step} runs in {STEPS[step].environment}, not in {request.environment}")
    if not out_uri.startswith(f"{settings.store_uri}/{step}/"):
        raise SpecError(f"step {step} writes to {out_uri}, expected a place below {settings.store_uri}/{step}")
    if unknown := request.variables.keys() - VARIABLES:
        raise SpecError(f"the agent hands on no variables {sorted(unknown)}; expected some of {sorted(VARIABLES)}")
    if unknown := request.labels.keys() - LABELS:
        raise SpecError(f"the agent sets no labels {sorted(unknown)}; expected some of {sorted(LABELS)}")


def check_plan(name: str, plan: ReplicaPlan, settings: Settings) -> None:
    """Refuses a replica whose name, port or bundle is not one that a rollout gives.

    Raises:
        SpecError: names what is not allowed.
    """
    check_name(name)
    if name != plan.replica.id:
        raise SpecError(f"the plan of {name!r} is of the replica {plan.replica.id!r}; expected the same name")
    if plan.replica.port != REPLICA_PORT:
        raise SpecError(f"{name}: port {plan.replica.port}, expected {REPLICA_PORT}")
    inside = settings.cache_path.resolve()
    if not plan.bundle_path.resolve().is_relative_to(inside):
        raise SpecError(f"{name}: the bundle {plan.bundle_path} is outside {inside}")


def check_name(name: str) -> None:
    """Refuses what is no replica's name, such as another container's.

    Raises:
        SpecError: names what is expected.
    """
    if not REPLICA_NAME.fullmatch(name):
        raise SpecError(f"{name!r} is no replica's name; expected replica-MODEL-vVERSION-gGENERATION-INDEX")
