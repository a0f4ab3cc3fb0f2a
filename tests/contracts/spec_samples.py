"""Specs of one release, for tests of the contract.

`python -m tests.contracts.spec_samples` freezes them and their keys anew: only after a deliberate change, which the
changelog names, because every user's next release then runs its steps again.
"""

import json
from pathlib import Path
from typing import Any

from pipeline.contracts import release
from pipeline.contracts.base import ArtifactRef, FileRef, FolderRef, ModelRef, Spec, step_key
from pipeline.contracts.recipe import Recipe
from pipeline.contracts.search import Search
from pipeline.contracts.specs import STEPS, PlanResult, PlanSpec, RolloutSpec
from pipeline.contracts.study import StudySpec, SuggestSpec, TrialRecord, TrialRung, Tried

KEYS = Path(__file__).with_name("keys.json")
SPECS = Path(__file__).with_name("specs.json")


def ref(step: str, store: str = "file:///store") -> ArtifactRef:
    """An artifact of `step` whose digest depends on the step alone."""
    return ArtifactRef(uri=f"{store}/{step}/{'ab' * 32}", digest=step.encode().hex().ljust(64, "0")[:64])


def plan(store: str = "file:///store", **recipe: Any) -> PlanResult:
    """A planned release whose inputs lie in `store`."""
    fields = {
        "name": "bank",
        "dataset": {"uri": f"{store}/train.jsonl", "eval_uri": f"{store}/eval.jsonl"},
        "base_model": {"uri": f"{store}/model"},
        "validation": {"suite_uri": f"{store}/suite.json"},
    }
    return PlanResult(
        recipe=Recipe.model_validate({**fields, **recipe}),
        recipe_digest="0" * 64,
        train=FileRef(uri=f"{store}/train.jsonl", digest="1" * 64, size_bytes=100),
        eval=FileRef(uri=f"{store}/eval.jsonl", digest="2" * 64, size_bytes=10),
        base_model=FolderRef(uri=f"{store}/model", digest="3" * 64),
        suite=FileRef(uri=f"{store}/suite.json", digest="4" * 64, size_bytes=10),
    )


def release_specs(store: str) -> dict[str, Spec]:
    """The specs of a release's content steps, wired as the DAG wires them."""
    planned = plan(store)
    data, tuned = ref("validate", store), ref("finetune", store)
    compressed, evaluated = ref("compress", store), ref("evaluate", store)
    return {
        "validate": release.validate_spec(planned),
        "finetune": release.finetune_spec(planned, data),
        "evaluate": release.evaluate_spec(planned, data, tuned),
        "compress": release.compress_spec(planned, data, tuned),
        "evaluate_compressed": release.evaluate_compressed_spec(
            planned, dataset=data, finetuned=tuned, evaluated=evaluated, compressed=compressed
        ),
    }


def all_specs() -> dict[str, Spec]:
    """One for each step."""
    planned, request_id = plan(), "manual__2026-01-01"
    return {
        **release_specs("file:///store"),
        "plan": PlanSpec(recipe=planned.recipe.model_dump(mode="json", exclude_unset=True), request_id=request_id),
        "register": release.register_spec(
            planned,
            dataset=ref("validate"),
            finetuned=ref("finetune"),
            bundle=ModelRef(artifact=ref("compress"), path="w8a8"),
            evaluation=ref("evaluate_compressed"),
        ),
        "promote": release.promote_spec(planned, ref("register"), request_id=request_id),
        "rollout": RolloutSpec(name="bank", generation=3, phase="shift", version="2", request_id="rollout-3"),
        **search_specs(),
    }


def search_specs() -> dict[str, Spec]:
    """Of a search whose first trial is complete."""
    search = Search.model_validate({"space": {"finetune.learning_rate": {"log": [1e-4, 1e-2]}}})
    tried = Tried(number=0, values={"finetune.learning_rate": 1e-3}, scores=(0.5, 0.75), state="complete")
    rung = TrialRung(epochs=3, finetuned=ref("finetune"), evaluated=ref("evaluate"))
    record = TrialRecord(number=0, suggestion=ref("suggest"), rungs=(rung,), state="complete")
    return {
        "suggest": SuggestSpec(search=search, recipe={"name": "bank"}, number=2, history=(tried,)),
        "study": StudySpec(name="bank", search=search, trials=(record,)),
    }


def freeze() -> None:
    """Writes both files."""
    specs = all_specs()
    dumped = {step: json.loads(specs[step].model_dump_json()) for step in sorted(specs)}
    keys = {step: step_key(step, STEPS[step].version, specs[step]) for step in sorted(specs)}
    SPECS.write_text(json.dumps(dumped, indent=1) + "\n")
    KEYS.write_text(json.dumps(keys, indent=1) + "\n")


if __name__ == "__main__":
    freeze()
