"""rollout: one phase of bringing the fleet to the version that the registry calls the champion.

Reads the registry and the version's bundle; writes the fleet's state, the gateway's configuration, replicas and
aliases. Its artifact is only a record (rollout.json): the effects are outside, and repeating a phase is harmless.
"""

from pathlib import Path

from pipeline import artifacts
from pipeline.contracts.specs import RegisterSpec, RolloutResult, RolloutSpec
from pipeline.fleet.hosts import replica_host
from pipeline.fleet.parts import Fleet
from pipeline.fleet.replicas import Replicas
from pipeline.fleet.rollout import run_phase
from pipeline.fleet.rollout_log import logged
from pipeline.job import Job
from pipeline.registry.connection import required_tracking_uri
from pipeline.registry.models import RegisteredVersion, Registry
from pipeline.signing.bundles import verified_folder
from pipeline.signing.keys import trusted
from pipeline.stack.layout import Layout


def run(spec: RolloutSpec, job: Job) -> RolloutResult:
    """Runs the phase that `spec` names.

    Raises:
        DataError: the champion is no version that can be served.
        TransientError: MLflow, the store or the gateway does not answer now.
    """
    layout = Layout(job.settings.home_path)
    say = logged(layout, spec, job.say)
    fleet = Fleet(
        layout=layout,
        registry=Registry(required_tracking_uri(job), layout.home_path),
        replicas=Replicas(replica_host(job.settings, layout)),
        fetch_bundle=lambda version: verified_folder(version, trusted(layout), job.fetch_model),
        fetch_predictions=lambda version: predictions_path(version, job),
        say=say,
    )
    result = run_phase(spec, fleet)
    say(f"{spec.name} rollout {result.generation} {spec.phase}: {result.outcome}: {result.reason}")
    state = fleet.files.get(spec.name)
    (job.staging_path / "rollout.json").write_text(state.model_dump_json(indent=2) + "\n")
    return result


def predictions_path(version: RegisteredVersion, job: Job) -> Path:
    """What the version answered in its evaluation."""
    registration = RegisterSpec.model_validate(artifacts.read_manifest(version.registration).spec)
    return job.fetch(registration.evaluation) / "predictions.jsonl"
