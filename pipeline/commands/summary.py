"""What a release came to: read from the manifests of its artifacts, shown as tables or written as JSON."""

import json
import shlex
from typing import Any

from pydantic import Field
from rich.table import Table

from pipeline import artifacts
from pipeline.commands import live
from pipeline.commands.airflow_api import AirflowApi
from pipeline.commands.output import console, in_bytes, in_seconds
from pipeline.contracts import specs
from pipeline.contracts.base import ArtifactRef, Contract
from pipeline.contracts.manifest import Manifest
from pipeline.fleet.views import read_fleet
from pipeline.stack.layout import Layout


class StepSummary(Contract):
    """One step of the release or its rollout."""

    step: str
    state: str
    duration_s: float | None
    reused: bool
    result: str
    """A sentence."""


class ReleaseSummary(Contract):
    """One release."""

    run_id: str
    model: str | None = None
    version: str | None = None
    steps: tuple[StepSummary, ...] = ()
    metric: str = "exact_match"
    baseline: specs.Scores | None = None
    scores: specs.Scores | None = None
    """After quantization: of what is served."""
    baseline_size_bytes: int | None = None
    size_bytes: int | None = None
    scheme: str | None = None
    scheme_reason: str = ""
    promoted: bool = False
    promote_reason: str = ""
    serving_version: str | None = None
    rollout_reason: str = ""
    images: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Container image, `name@sha256:…`, to the steps whose artifacts were made in it."""
    curl: str = ""
    duration_s: float = 0.0

    def with_rollout(self, layout: Layout, api: AirflowApi, dag_id: str, run_id: str | None) -> "ReleaseSummary":
        """With the rollout's steps, and what serves now."""
        model = read_fleet(layout.home_path).get(str(self.model))
        rollout = next((r for r in model.history if r.request_id == run_id), None) if model else None
        steps = _steps(api, dag_id, run_id, prefix="rollout ") if run_id else {}
        return self.model_copy(
            update={
                "steps": (*self.steps, *(step for step, _ in steps.values())),
                "serving_version": model.serving.version if model and model.serving else None,
                "rollout_reason": rollout.reason if rollout else "",
            }
        )


Steps = dict[str, tuple[StepSummary, Manifest | None]]


def collect(layout: Layout, api: AirflowApi, dag_id: str, run_id: str) -> ReleaseSummary:
    """The summary of a finished release run."""
    steps = _steps(api, dag_id, run_id)
    made = {name: manifest for name, (_, manifest) in steps.items() if manifest}
    summary = ReleaseSummary(run_id=run_id, steps=tuple(step for step, _ in steps.values()))
    return summary.model_copy(update=_figures(made) | {"images": images_of(made), "curl": curl_line(layout, made)})


def show(summary: ReleaseSummary) -> None:
    """Prints the summary for people."""
    console.print()
    table = Table(box=None, pad_edge=False, title="What was done", title_justify="left")
    for heading in ("step", "state", "time", "result"):
        table.add_column(heading, justify="right" if heading == "time" else "left")
    for step in summary.steps:
        took = "reused" if step.reused else in_seconds(step.duration_s) if step.duration_s is not None else ""
        table.add_row(step.step, step.state, took, step.result)
    console.print(table)
    console.print()
    for line in lines(summary):
        console.print(line, markup=False, soft_wrap=True)


def lines(summary: ReleaseSummary) -> list[str]:
    """The figures as sentences."""
    told = []
    if summary.baseline and summary.scores:
        for metric in ("exact_match", "token_f1"):
            before, after = (estimate(scores.primary(metric)) for scores in (summary.baseline, summary.scores))
            told.append(f"{metric:<12} {before}  →  {after} after compression ({summary.scores.rows} held-out rows)")
        told.append(f"{'loss':<12} {summary.baseline.loss:.4f}  →  {summary.scores.loss:.4f}")
    if summary.size_bytes and summary.baseline_size_bytes:
        ratio = summary.baseline_size_bytes / summary.size_bytes
        told.append(
            f"{'weights':<12} {in_bytes(summary.baseline_size_bytes)}  →  {in_bytes(summary.size_bytes)} ({ratio:.1f}×)"
        )
    if summary.scheme:
        told.append(f"{'form':<12} {summary.scheme}: {summary.scheme_reason}")
    if summary.version:
        verdict = "promoted" if summary.promoted else "NOT promoted"
        told.append(f"{'promotion':<12} {summary.model} version {summary.version} {verdict}: {summary.promote_reason}")
    if summary.serving_version:
        told.append(f"{'serving':<12} {summary.model} version {summary.serving_version}")
    for image, steps in summary.images.items():
        told.append(f"{'image':<12} {image}: {', '.join(steps)}")
    told.append(f"{'took':<12} {in_seconds(summary.duration_s)}")
    if summary.curl and summary.serving_version:
        told += ["", "Try it:", f"  {summary.curl}"]
    return told


def images_of(made: dict[str, Manifest]) -> dict[str, tuple[str, ...]]:
    """Empty for a release whose steps were processes."""
    images = sorted({manifest.image for manifest in made.values() if manifest.image})
    return {image: tuple(step for step, manifest in made.items() if manifest.image == image) for image in images}


def estimate(value: specs.Estimate) -> str:
    return f"{value.value:.4f} [{value.low:.4f}, {value.high:.4f}]"


def curl_line(layout: Layout, made: dict[str, Manifest]) -> str:
    """A request that can be pasted into a shell, with a prompt from the held-out rows."""
    if "plan" not in made or "validate" not in made:
        return ""
    plan = specs.PlanResult.model_validate(made["plan"].result)
    body = {
        "model": plan.recipe.name,
        "messages": _first_prompt(layout, made["validate"]),
        "max_tokens": plan.recipe.evaluate.max_new_tokens,
        "temperature": 0,
    }
    return (
        f"curl -si {layout.ports().public_url('gateway')}/v1/chat/completions"
        f" -H 'Authorization: Bearer {layout.access().api_key}' -H 'Content-Type: application/json'"
        f" -d {shlex.quote(json.dumps(body, ensure_ascii=False))}"
    )


def _first_prompt(layout: Layout, validated: Manifest) -> list[dict[str, str]]:
    folder = artifacts.fetch(_ref_of(validated, layout), layout.cache_path)
    with (folder / "eval.jsonl").open(encoding="utf-8") as rows:
        messages: list[dict[str, str]] = json.loads(rows.readline())["messages"]
    return messages[:-1]


def _ref_of(manifest: Manifest, layout: Layout) -> ArtifactRef:
    from pipeline import settings

    return manifest.ref(f"{settings.load().store_uri}/{manifest.step}/{manifest.key}")


def _steps(api: AirflowApi, dag_id: str, run_id: str, prefix: str = "") -> Steps:
    """Every task that ended, with the manifest of what it made."""
    found: Steps = {}
    ended = [task for task in api.tasks(dag_id, run_id) if task["end_date"]]
    for task in live.in_order(ended):
        name = task["task_id"]
        ref = api.artifact(dag_id, run_id, name) if task["state"] == "success" and name != "approve" else None
        manifest = artifacts.read_manifest(ref) if ref else None
        reused = bool(manifest and task["start_date"] and manifest.started_at < task["start_date"][:19])
        summary = StepSummary(
            step=prefix + name,
            state=str(task["state"]),
            duration_s=live.elapsed_s(task),
            reused=reused,
            result=sentence(manifest) if manifest else "",
        )
        found[name] = (summary, manifest)
    return found


def _figures(made: dict[str, Manifest]) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    if "plan" in made:
        plan = specs.PlanResult.model_validate(made["plan"].result)
        figures |= {"model": plan.recipe.name, "metric": plan.recipe.evaluate.primary_metric}
    if "compress" in made:
        compressed = specs.CompressResult.model_validate(made["compress"].result)
        figures["baseline_size_bytes"] = compressed.baseline_size_bytes
    if "evaluate_compressed" in made:
        chosen = specs.EvaluateCompressedResult.model_validate(made["evaluate_compressed"].result)
        figures |= {"baseline": chosen.baseline, "scores": chosen.scores, "size_bytes": chosen.size_bytes}
        figures |= {"scheme": chosen.scheme, "scheme_reason": chosen.reason}
    if "register" in made:
        figures["version"] = specs.RegisterResult.model_validate(made["register"].result).version
    if "promote" in made:
        promoted = specs.PromoteResult.model_validate(made["promote"].result)
        figures |= {"promoted": promoted.promoted, "promote_reason": promoted.reason}
    return figures


def sentence(manifest: Manifest) -> str:
    """What a step found, in one line."""
    result: Any = specs.STEPS[manifest.step].result.model_validate(manifest.result)
    match result:
        case specs.PlanResult():
            return f"recipe {result.recipe_digest[:12]}, training rows {result.train.digest[:12]}"
        case specs.ValidateResult():
            return f"{result.train_rows:,} training and {result.eval_rows:,} held-out rows keep {result.rules} rules"
        case specs.FinetuneResult():
            size = f"{result.parameters / 1e6:.2f} M parameters"
            return f"{result.steps:,} steps, {size}, {result.train_tokens:,} tokens, loss {result.final_train_loss:.4f}"
        case specs.EvaluateResult():
            return f"exact match {estimate(result.scores.exact_match)}, loss {result.scores.loss:.4f}"
        case specs.CompressResult():
            rungs = ", ".join(f"{rung.scheme} {in_bytes(rung.size_bytes)}" for rung in result.rungs)
            return f"{rungs or 'nothing to do'}; unquantized {in_bytes(result.baseline_size_bytes)}"
        case specs.EvaluateCompressedResult():
            return f"{result.scheme}: exact match {estimate(result.scores.exact_match)}"
        case specs.RegisterResult():
            return f"{result.name} version {result.version}"
        case specs.PromoteResult():
            return f"{'promoted' if result.promoted else 'not promoted'}: {result.reason}"
        case specs.RolloutResult():
            return f"{result.outcome.replace('_', ' ')}{f': {result.reason}' if result.reason else ''}"
        case _:
            return ""
