"""Fine-tunes a language model on the validated rows, on all nodes of the job together.

Reads validate's train.jsonl and the base model. The first node leaves a Hugging Face folder, training/metrics.jsonl
and training/loss.png; checkpoints lie in the store until the artifact is published.
"""

import shutil
from pathlib import Path
from typing import Any

from pipeline.artifacts.transfer import read_manifest
from pipeline.contracts.base import ArtifactRef, FileRef
from pipeline.contracts.finetune import Finetune
from pipeline.contracts.specs import FinetuneResult, FinetuneSpec
from pipeline.errors import SpecError
from pipeline.imports import hide
from pipeline.job import Job
from pipeline.settings import set_for_libraries
from pipeline.training import base_model, launch, step_time, tokenized
from pipeline.training.plan import Outcome, TrainingPlan
from pipeline.training.tracking import Tracker

TRAIN_FILE = "train.jsonl"


def run(spec: FinetuneSpec, job: Job) -> FinetuneResult | None:
    """Trains on this node; on the first, also saves the model.

    Returns:
        What was trained; None on the nodes without the first rank.

    Raises:
        SpecError: the job has other nodes than the recipe says, this machine lacks what it asks for, or the base model
            cannot be trained as asked.
        DataError: rows that teach nothing, or a loss that is no number.
        TransientError: ranks or nodes were lost too often.
    """
    settings = spec.settings
    check_nodes(settings, job)
    check_overlap(settings)
    use_transformers_without_torch()
    scratch = job.work_path / f"node-{job.settings.node_rank}"
    scratch.mkdir(parents=True, exist_ok=True)
    rows_path = job.fetch(spec.dataset) / TRAIN_FILE
    model_path = prepare_model(spec, job, rows_path, scratch)
    teacher_path = prepare_teacher(spec, job, model_path)
    tokens_path = tokenize(spec, job, rows_path, model_path)
    plan = make_plan(spec, job, scratch, model_path=model_path, teacher_path=teacher_path, tokens_path=tokens_path)
    train(plan, job, scratch)
    if not plan.outcome_path.exists():
        return None  # the first rank was on another node
    outcome = Outcome.model_validate_json(plan.outcome_path.read_bytes())
    job.seeds["finetune"] = settings.seed
    job.figures.update(outcome.figures)
    return FinetuneResult(**outcome.model_dump(exclude={"figures"}))


def check_nodes(settings: Finetune, job: Job) -> None:
    if settings.parallelism.auto:
        raise SpecError("finetune.parallelism is auto, which the plan step replaces by what it chooses: plan first")
    if settings.nodes != job.settings.nodes:
        raise SpecError(
            f"finetune.nodes is {settings.nodes}, but the job runs on {job.settings.nodes} (SLIPWAY_NODES):"
            " give the job as many nodes as the recipe says"
        )


def check_overlap(settings: Finetune) -> None:
    if settings.communication.overlap and not launch.has_accelerator():
        raise SpecError(
            "finetune.communication.overlap is true, which needs an accelerator, and this machine has none: leave it"
            " out, or train on machines that have one"
        )


def use_transformers_without_torch() -> None:
    """This process only tokenizes, the ranks train: without torch, transformers is here in a quarter of the time."""
    hide("torch")
    set_for_libraries({"TRANSFORMERS_NO_ADVISORY_WARNINGS": "1"})  # one would say that torch was not found


def prepare_model(spec: FinetuneSpec, job: Job, rows_path: Path, scratch: Path) -> Path:
    """The base model's folder on this node, checked."""
    if spec.base_model.init is None:
        model_path = base_model.local_folder(spec, job.settings.cache_path)
        base_model.check_weights(model_path)
    else:
        model_path = scratch / "base"
        shutil.rmtree(model_path, ignore_errors=True)
        base_model.write_new_model(spec.base_model.init, rows_path, model_path)
    base_model.check_model(model_path, spec.settings)
    return model_path


def prepare_teacher(spec: FinetuneSpec, job: Job, model_path: Path) -> Path | None:
    """The teacher's folder on this node, checked; None where there is none."""
    if spec.teacher is None:
        return None
    folder = base_model.teacher_folder(spec.teacher, job)
    base_model.check_weights(folder)
    base_model.check_teacher(folder, model_path)
    return folder


def tokenize(spec: FinetuneSpec, job: Job, rows_path: Path, model_path: Path) -> Path:
    """The rows in the model's tokens, made by this training or by another one before it."""
    settings = spec.settings
    rows = train_rows(spec.dataset)
    folder, report = tokenized.fetch_tokens(
        tokenized.make_spec(rows, model_path, settings), job, rows_path=rows_path, model_path=model_path
    )
    job.say(f"{report.rows} rows, {report.tokens} tokens")
    if report.shortened_prompts or report.shortened_answers:
        job.say(
            f"warning: rows longer than max_seq_len ({settings.max_seq_len}): {report.shortened_prompts} lost the"
            f" beginning of their prompt, {report.shortened_answers} the end of their answer"
        )
    job.figures.update(
        shortened_prompts=report.shortened_prompts, shortened_answers=report.shortened_answers, rows=report.rows
    )
    return folder


def train_rows(dataset: ArtifactRef) -> FileRef:
    """The training rows of a validated data set."""
    manifest = read_manifest(dataset)
    (entry,) = (entry for entry in manifest.files if entry.path == TRAIN_FILE)
    uri = f"{dataset.uri}/{manifest.root}/{TRAIN_FILE}"
    return FileRef(uri=uri, digest=entry.sha256, size_bytes=entry.size_bytes)


def make_plan(
    spec: FinetuneSpec, job: Job, scratch: Path, *, model_path: Path, teacher_path: Path | None, tokens_path: Path
) -> TrainingPlan:
    return TrainingPlan(
        settings=spec.settings,
        node_rank=job.settings.node_rank,
        threads=launch.threads_per_rank(job.settings, spec.settings.procs_per_node),
        model_path=model_path,
        teacher_path=teacher_path,
        fresh=spec.base_model.init is not None,
        tokens_path=tokens_path,
        checkpoints_uri=job.checkpoints_uri,
        checkpoints_path=scratch / "checkpoints",
        events_path=scratch / "events.jsonl",
        fault_path=scratch / "fault.json",
        outcome_path=scratch / "outcome.json",
        output_path=job.staging_path,
    )


def train(plan: TrainingPlan, job: Job, scratch: Path) -> None:
    """Runs torchrun on this node to its end, with the first node's figures going to MLflow."""
    for path in (plan.fault_path, plan.outcome_path, plan.events_path):
        path.unlink(missing_ok=True)
    logs_path = scratch / "torchrun"
    shutil.rmtree(logs_path, ignore_errors=True)
    plan_path = scratch / "plan.json"
    plan.save(plan_path)
    command = launch.torchrun_command(
        job.settings,
        plan_path,
        plan.settings,
        job_id=job.settings.job_id or job.key[:16],
    )
    launch.await_meeting_place(job.settings, plan.settings)
    elastic = plan.settings.min_nodes is not None
    rendezvous = job.settings.rendezvous if elastic else None
    if not job.is_first_node and not elastic:
        launch.run(command, plan, logs_path)
        return
    params = {
        **flat(plan.settings.model_dump(exclude_none=True)),
        "threads_per_rank": plan.threads,
    }
    plots = plan.output_path / "training" / "loss.png", plan.events_path.with_name(step_time.NAME)
    with Tracker(job, params, events_path=plan.events_path, plot_paths=plots, wait_for_events=elastic):
        launch.run(command, plan, logs_path, rendezvous=rendezvous)


def flat(fields: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"parallelism": {"zero": 1}}` as `{"parallelism.zero": 1}`."""
    found: dict[str, Any] = {}
    for name, value in fields.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found
