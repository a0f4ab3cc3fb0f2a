"""The model card: what a person wants to know before calling a version, as Markdown.

It enters the registration artifact's digest, so it names content by digest and holds no time, run id, address or
code version.
"""

from pipeline.contracts.specs import Scores
from pipeline.registry.lineage import Lineage, base_model_name, interval, recipe_digest

_CARD = """\
# {name}

{description}

## Scores
On {eval_rows} held-out rows, with the engine that serves the model; intervals at {confidence:.0%} confidence.

| model | exact match | token F1 | loss (nats) | weights (bytes) |
|---|---|---|---|---|
| **released** ({scheme}) | {released} | {size_bytes:,} |
| baseline (unquantized) | {baseline} | |

## Quantization
Released scheme: **{scheme}**. {reason}

| scheme | passed | recovery | reason |
|---|---|---|---|
{trials}

## Training
{method} fine-tuning of {base_model}: {steps} steps, {parameters:,} parameters, {train_tokens:,} tokens seen, final
training loss {final_train_loss:.4f}.

| setting | value |
|---|---|
{settings}

## Data
{train_rows} training rows and {eval_rows} held-out rows in {format} form; {rules} expectations were met.
Training rows `{train_digest}`, held-out rows `{eval_digest}` (sha256).

## Lineage
| what | sha256 |
|---|---|
| bundle | `{bundle_digest}` |
| data set | `{dataset_digest}` |
| fine-tuned model | `{finetuned_digest}` |
| evaluation | `{evaluation_digest}` |
| recipe | `{recipe_digest}` |

## How to call it
Through the gateway, in OpenAI's chat form:

    curl "$GATEWAY/v1/chat/completions" -H "Authorization: Bearer $SLIPWAY_API_KEY" \\
      -H "Content-Type: application/json" \\
      -d '{{"model": "{name}", "messages": [{{"role": "user", "content": "…"}}], "max_tokens": {max_new_tokens}}}'
"""


def render(lineage: Lineage) -> str:
    recipe, verdict, training, data = lineage.spec.recipe, lineage.verdict, lineage.training, lineage.data
    digests = {entry.path: entry.sha256 for entry in lineage.dataset.files}
    trials = [
        f"| {trial.scheme} | {'yes' if trial.passed else 'no'} | {interval(trial.recovery)} | {_cell(trial.reason)} |"
        for trial in verdict.trials
    ]
    settings = [f"| {name} | {value} |" for name, value in _flat(recipe.finetune.model_dump(mode="json")).items()]
    return _CARD.format(
        name=recipe.name,
        description=recipe.description or "No description was given in the recipe.",
        confidence=recipe.evaluate.confidence,
        released=_scores_row(verdict.scores),
        baseline=_scores_row(verdict.baseline),
        scheme=verdict.scheme,
        reason=verdict.reason,
        size_bytes=verdict.size_bytes,
        trials="\n".join(trials) or "| none | | | nothing was tried |",
        method=recipe.finetune.method.capitalize(),
        base_model=base_model_name(recipe.base_model),
        settings="\n".join(settings),
        format=recipe.dataset.format,
        train_digest=digests.get("train.jsonl", "unknown"),
        eval_digest=digests.get("eval.jsonl", "unknown"),
        bundle_digest=lineage.bundle_digest,
        dataset_digest=lineage.dataset.digest,
        finetuned_digest=lineage.finetuned.digest,
        evaluation_digest=lineage.evaluation.digest,
        recipe_digest=recipe_digest(recipe),
        max_new_tokens=recipe.evaluate.max_new_tokens,
        **training.model_dump(),
        **data.model_dump(exclude={"labels"}),
    )


def _scores_row(scores: Scores) -> str:
    return f"{interval(scores.exact_match)} | {interval(scores.token_f1)} | {scores.loss:.4f}"


def _flat(settings: dict[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
