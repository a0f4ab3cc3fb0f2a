"""Stands in for `python -m pipeline STEP` where a search needs trainings that take no time and score as foreseen.

    python stub_training.py -m pipeline STEP --spec SPEC --out URI

The score depends on the learning rate and the epochs alone: the nearer the rate is to 0.01, the better. A training with
a rate of 0.5 or more diverges. Each run of a step is noted in SLIPWAY_HOME/stub/runs.
"""

import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

from pipeline import artifacts, settings
from pipeline.artifacts.digests import file_entries
from pipeline.artifacts.transfer import content_root
from pipeline.contracts.base import Result, Spec
from pipeline.contracts.manifest import Manifest, manifest_digest
from pipeline.contracts.specs import (
    STEPS,
    Estimate,
    EvaluateResult,
    EvaluateSpec,
    FinetuneResult,
    FinetuneSpec,
    Scores,
    ValidateResult,
    ValidateSpec,
)

DIVERGES_AT = 0.5


def score(learning_rate: float, epochs: float) -> float:
    return round(0.9 - 0.2 * abs(math.log10(learning_rate) + 2) + 0.01 * epochs, 6)


def main(step: str, spec_path: Path, out_uri: str) -> int:
    folder = settings.load().home_path / "stub"
    with (folder / "runs").open("a") as runs:
        runs.write(f"{step}\n")
    spec = STEPS[step].spec.model_validate_json(spec_path.read_bytes())
    if isinstance(spec, FinetuneSpec) and spec.settings.learning_rate >= DIVERGES_AT:
        print("error 65 DataError: the loss became nan", flush=True)
        return 65
    result = make(spec)
    if result is None:
        print(f"error 65 StubError: {step} is not of interest", flush=True)
        return 65
    publish(step, spec, result, out_uri)
    return 0


def make(spec: Spec) -> Result | None:
    if isinstance(spec, FinetuneSpec):
        value = score(spec.settings.learning_rate, spec.settings.epochs)
        return FinetuneResult(steps=1, parameters=1, final_train_loss=round(1 - value, 6), train_tokens=1)
    if isinstance(spec, EvaluateSpec):
        loss = artifacts.read_manifest(spec.model.artifact).result["final_train_loss"]
        value = Estimate(value=round(1 - loss, 6), low=0.0, high=1.0)
        return EvaluateResult(scores=Scores(rows=50, loss=loss, exact_match=value, token_f1=value))
    if isinstance(spec, ValidateSpec):
        return ValidateResult(train_rows=100, eval_rows=50, labels=(), rules=1)
    return None


def publish(step: str, spec: Spec, result: Result, out_uri: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "result.json").write_text(result.model_dump_json())
        files = file_entries(Path(folder))
        key, dumped = out_uri.rpartition("/")[2], result.model_dump(mode="json")
        fields: dict[str, Any] = json.loads(spec.model_dump_json())
        manifest = Manifest(
            step=step,
            key=key,
            digest=manifest_digest(step, key, files, dumped),
            root=content_root(files),
            files=files,
            spec=fields,
            result=dumped,
            code_version="test",
            environment_digest="0" * 64,
            started_at="2026-01-01T00:00:00+00:00",
            duration_s=2.0,
        )
        artifacts.publish(out_uri, Path(folder), manifest)


if __name__ == "__main__":
    arguments = dict(zip(sys.argv[4::2], sys.argv[5::2], strict=True))
    sys.exit(main(sys.argv[3], Path(arguments["--spec"]), arguments["--out"]))
