"""Publishes the artifacts of a release up to evaluate_compressed, made up but well formed, for the registry's tests."""

import json
from pathlib import Path
from typing import Any

from pipeline import artifacts, cli
from pipeline.contracts.base import ArtifactRef, ModelRef, Spec, step_key
from pipeline.contracts.recipe import Recipe
from pipeline.contracts.specs import (
    STEPS,
    CompressResult,
    CompressSpec,
    Estimate,
    EvaluateCompressedResult,
    EvaluateCompressedSpec,
    EvaluateResult,
    EvaluateSpec,
    FinetuneResult,
    FinetuneSpec,
    PromoteResult,
    PromoteSpec,
    RegisterSpec,
    Rung,
    Scores,
    Trial,
    ValidateResult,
    ValidateSpec,
)
from pipeline.job import Job
from pipeline.settings import Settings
from pipeline.signing import keys
from pipeline.stack.layout import Layout


def weights(seed: int) -> bytes:
    """The bytes of a safetensors file with no tensor in it."""
    header = json.dumps({"__metadata__": {"seed": str(seed)}}).encode()
    return len(header).to_bytes(8, "little") + header


class FinishedRelease:
    """The artifacts of one release in the store at `home/store`."""

    def __init__(self, home: Path, recipe: dict[str, Any] | None = None) -> None:
        self.settings = Settings(home_path=home, venvs_path=home, store_uri=f"file://{home}/store")
        keys.ensure(Layout(home))
        self.recipe = Recipe.model_validate(
            {
                "name": "intents",
                "description": "Answers with the intent of a customer's message.",
                "dataset": {"generate": {"kind": "support-intents"}},
                "base_model": {"init": {}},
                **(recipe or {}),
            }
        )

    def build(
        self, correct: list[bool], *, seed: int = 0, prompts: str = "question", pickle: bool = False
    ) -> RegisterSpec:
        """Everything before register; `correct` says which of the held-out rows the released model answers right.

        Releases of different `seed` differ in their weights; `prompts` names the held-out rows.
        """
        dataset = self._dataset(prompts, len(correct))
        finetuned = self._finetuned(dataset, seed)
        scores = _scores(correct)
        evaluated = self._publish(
            "evaluate",
            EvaluateSpec(
                model=ModelRef(artifact=finetuned), dataset=dataset, settings=self.recipe.evaluate, max_model_len=256
            ),
            EvaluateResult(scores=scores),
            {"predictions.jsonl": _predictions(correct, prompts)},
            figures={"rows_per_s": 12.5},
        )
        compressed = self._compressed(dataset, finetuned, seed=seed, pickle=pickle)
        evaluation = self._publish(
            "evaluate_compressed",
            EvaluateCompressedSpec(
                baseline=evaluated,
                model=ModelRef(artifact=finetuned),
                compressed=compressed,
                dataset=dataset,
                settings=self.recipe.evaluate,
                ladder=("w8a8", "none"),
                min_recovery=0.98,
                max_model_len=256,
            ),
            _verdict(scores),
            {"predictions.jsonl": _predictions(correct, prompts)},
            figures={"peak_memory_mib": 900},
        )
        return RegisterSpec(
            name=self.recipe.name,
            recipe=self.recipe,
            dataset=dataset,
            finetuned=finetuned,
            bundle=ModelRef(artifact=compressed, path="w8a8"),
            evaluation=evaluation,
        )

    def register(self, spec: RegisterSpec) -> int:
        """Runs the register step as its job would; its exit code."""
        return self._run("register", spec)

    def registration(self, spec: RegisterSpec) -> ArtifactRef:
        """The artifact of `register`."""
        uri = self.out_uri("register", spec)
        return artifacts.read_manifest(uri).ref(uri)

    def promote(self, spec: PromoteSpec) -> int:
        """Runs the promote step as its job would; its exit code."""
        return self._run("promote", spec)

    def decision(self, spec: PromoteSpec) -> PromoteResult:
        """The result of `promote`."""
        return PromoteResult.model_validate(artifacts.read_manifest(self.out_uri("promote", spec)).result)

    def promote_spec(self, registration: ArtifactRef, request_id: str = "run-1", **changes: Any) -> PromoteSpec:
        """The spec that the release DAG would give to promote."""
        fields = {"gates": self.recipe.gates, "metric": "exact_match", "policy": "auto", **changes}
        return PromoteSpec(registration=registration, request_id=request_id, **fields)

    def _run(self, step: str, spec: Spec) -> int:
        path = self.settings.home_path / f"{step}.json"
        path.write_text(spec.model_dump_json())
        return cli.main([step, "--spec", str(path), "--out", self.out_uri(step, spec)])

    def out_uri(self, step: str, spec: Spec) -> str:
        return f"{self.settings.store_uri}/{step}/{step_key(step, STEPS[step].version, spec)}"

    def _dataset(self, prompts: str, rows: int) -> ArtifactRef:
        train = {"uri": f"file:///{prompts}/train.jsonl", "digest": "1" * 64, "size_bytes": 10}
        held_out = {"uri": f"file:///{prompts}/eval.jsonl", "digest": f"{rows:064d}", "size_bytes": 10}
        return self._publish(
            "validate",
            ValidateSpec.model_validate({"train": train, "eval": held_out, "rules": {"min_chars": len(prompts)}}),
            ValidateResult(train_rows=1000, eval_rows=rows, labels=("yes",), rules=12),
            {"train.jsonl": b"{}\n", "eval.jsonl": f'{{"of": "{prompts}"}}\n'.encode()},
        )

    def _finetuned(self, dataset: ArtifactRef, seed: int) -> ArtifactRef:
        settings = self.recipe.finetune.model_copy(update={"seed": seed})
        return self._publish(
            "finetune",
            FinetuneSpec(dataset=dataset, base_model=self.recipe.base_model, settings=settings),
            FinetuneResult(steps=94, parameters=1_000_000, final_train_loss=0.25, train_tokens=50_000),
            {"config.json": b"{}", "model.safetensors": weights(seed)},
        )

    def _compressed(self, dataset: ArtifactRef, finetuned: ArtifactRef, *, seed: int, pickle: bool) -> ArtifactRef:
        files = {
            "w8a8/config.json": b"{}",
            "w8a8/model.safetensors": weights(seed),
            "w8a8/tokenizer.json": b"{}",
            "w8a8/chat_template.jinja": b"{{ messages }}",
        }
        if pickle:
            files["w8a8/optimizer.pt"] = b"\x80\x04."
        return self._publish(
            "compress",
            CompressSpec(
                model=ModelRef(artifact=finetuned), dataset=dataset, settings=self.recipe.compress, max_seq_len=256
            ),
            CompressResult(rungs=(Rung(scheme="w8a8", path="w8a8", size_bytes=1000),), baseline_size_bytes=4000),
            files,
        )

    def _publish(
        self, step: str, spec: Spec, result: Any, files: dict[str, bytes], figures: dict[str, Any] | None = None
    ) -> ArtifactRef:
        uri = self.out_uri(step, spec)
        job = Job(step=step, key=uri.rsplit("/", 1)[1], out_uri=uri, settings=self.settings, figures=figures or {})
        for name, data in files.items():
            path = job.staging_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        manifest = cli.draft_manifest(job, spec, result, started_at="2026-01-01T00:00:00+00:00", duration_s=1.0)
        return artifacts.publish(uri, job.staging_path, manifest).ref(uri)


def _scores(correct: list[bool]) -> Scores:
    mean = sum(correct) / len(correct)
    estimate = Estimate(value=mean, low=max(0.0, mean - 0.05), high=min(1.0, mean + 0.05))
    return Scores(rows=len(correct), loss=0.5, exact_match=estimate, token_f1=estimate)


def _verdict(scores: Scores) -> EvaluateCompressedResult:
    trial = Trial(
        scheme="w8a8",
        scores=scores,
        recovery=Estimate(value=1.0, low=0.99, high=1.01),
        passed=True,
        reason="w8a8 keeps 1.0000 [0.9900, 1.0100] of the baseline's score, at least 0.98 was asked",
    )
    return EvaluateCompressedResult(
        scheme="w8a8",
        path="w8a8",
        size_bytes=1000,
        scores=scores,
        baseline=scores,
        trials=(trial,),
        reason=trial.reason,
    )


def _predictions(correct: list[bool], prompts: str) -> bytes:
    rows = [
        {
            "row": number,
            "prompt": f"{prompts} {number}",
            "reference": "yes",
            "prediction": "yes" if right else "no",
            "exact_match": float(right),
            "token_f1": float(right),
            "loss": 0.5,
            "loss_tokens": 2,
        }
        for number, right in enumerate(correct)
    ]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()
