"""register: puts the chosen bundle into the model registry, with everything that it comes from.

Reads the manifests of validate, finetune, evaluate and evaluate_compressed, and the bundle itself. Writes
model_card.md, and one version in MLflow whose tags name the bundle by digest and hold its signature. The weights stay
in the artifact store.
"""

import json
import shutil
from pathlib import Path

from pipeline.contracts.manifest import FileEntry
from pipeline.contracts.specs import RegisterResult, RegisterSpec
from pipeline.job import Job
from pipeline.registry.bundles import inspect_bundle
from pipeline.registry.connection import required_tracking_uri
from pipeline.registry.fleet_link import fleet_link
from pipeline.registry.lineage import Lineage, gather, run_metrics, version_tags
from pipeline.registry.model_card import render
from pipeline.registry.models import BUNDLE_DIGEST_TAG, REGISTRATION_TAG, SIGNATURE_TAG, Registry
from pipeline.registry.runs import MlflowRun, open_run
from pipeline.signing.bundles import Registered, sign
from pipeline.signing.keys import key_id, short, signing_key

MLFLOW_FOLDER = "model"


def run(spec: RegisterSpec, job: Job) -> RegisterResult:
    """Registers `spec.bundle` once: the same spec always gives the same version.

    Raises:
        GateRefused: the bundle holds a file that may run code.
        IntegrityError: a byte of the bundle, or a manifest behind it, was altered.
        SpecError: there is no key to sign with.
        TransientError: MLflow does not answer.
    """
    tracking_uri = required_tracking_uri(job)
    key = signing_key(job.settings)
    files, bundle_digest = inspect_bundle(job.fetch_model(spec.bundle))
    lineage = gather(spec, bundle_digest)
    card_path = job.staging_path / "model_card.md"
    card_path.write_text(render(lineage), encoding="utf-8")
    with open_run(job, tracking_uri) as mlflow_run:
        _log(mlflow_run, lineage, job=job, card_path=card_path, files=files)
        registry = Registry(tracking_uri, job.settings.home_path)
        link = fleet_link(job.settings.home_path, spec.name)
        registered = registry.create(
            spec.name,
            key=job.key,
            source=mlflow_run.artifact_uri(MLFLOW_FOLDER),
            run_id=str(mlflow_run.run_id),
            tags={**version_tags(lineage), BUNDLE_DIGEST_TAG: bundle_digest, REGISTRATION_TAG: job.out_uri},
            description=f"{card_path.read_text(encoding='utf-8')}\n{link}".strip() + "\n",
        )
        # After it has its number, which is signed too; until this step's artifact exists nobody can serve the version.
        vouched = Registered(model=spec.name, version=registered.version, bundle_digest=bundle_digest)
        registry.tag(spec.name, registered.version, SIGNATURE_TAG, sign(vouched, files, key))
        if link:
            registry.describe(spec.name, link)
    job.say(f"registered {spec.name} version {registered.version}: bundle {bundle_digest}, {lineage.verdict.reason}")
    job.say(f"signed by the key {short(key_id(key.public_key()))}")
    return RegisterResult(name=spec.name, version=registered.version, bundle_digest=bundle_digest)


def _log(mlflow_run: MlflowRun, lineage: Lineage, *, job: Job, card_path: Path, files: tuple[FileEntry, ...]) -> None:
    """The release's figures and inputs, and the small files that stand for the bundle in MLflow."""
    spec = lineage.spec
    mlflow_run.set_tags({**version_tags(lineage), BUNDLE_DIGEST_TAG: lineage.bundle_digest, "slipway.model": spec.name})
    mlflow_run.log_params(spec.recipe.finetune.model_dump(mode="json"))
    mlflow_run.log_metrics(run_metrics(lineage))
    digests = {entry.path: entry.sha256 for entry in lineage.dataset.files}
    for name, context in (("train.jsonl", "training"), ("eval.jsonl", "evaluation")):
        if name in digests:
            mlflow_run.log_dataset(f"{spec.name}/{name}", digest=digests[name], uri=spec.dataset.uri, context=context)
    folder = job.work_path / "mlflow"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(card_path, folder / "model_card.md")
    bundle = {
        "bundle": spec.bundle.model_dump(),
        "bundle_digest": lineage.bundle_digest,
        "files": [entry.model_dump() for entry in files],
    }
    (folder / "bundle.json").write_text(json.dumps(bundle, indent=2) + "\n", encoding="utf-8")
    (folder / "recipe.json").write_text(spec.recipe.model_dump_json(indent=2) + "\n", encoding="utf-8")
    mlflow_run.log_artifacts(folder, MLFLOW_FOLDER)
