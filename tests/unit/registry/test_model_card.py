"""The model card."""

from pathlib import Path

import pytest

from pipeline.contracts.base import Content
from pipeline.registry.lineage import Lineage, gather, run_metrics, version_tags
from pipeline.registry.model_card import render
from tests.integration.finished_release import FinishedRelease


@pytest.fixture
def lineage(tmp_path: Path) -> Lineage:
    return gather(FinishedRelease(tmp_path).build([True, True, True, False]), "b" * 64)


def test_the_card_tells_what_a_caller_wants_to_know(lineage: Lineage) -> None:
    """Scores with intervals, the quantization and its reason, the settings, the data, the lineage, the call."""
    card = render(lineage)
    for expected in (
        "# intents",
        "Answers with the intent of a customer's message.",
        "| **released** (w8a8) | 0.7500 [0.7000, 0.8000] |",
        "Released scheme: **w8a8**. w8a8 keeps 1.0000",
        "| learning_rate | 0.001 |",
        "| parallelism.zero | 1 |",
        "1000 training rows and 4 held-out rows in chat form; 12 expectations were met.",
        f"| bundle | `{'b' * 64}` |",
        f"| data set | `{lineage.dataset.digest}` |",
        '"model": "intents"',
    ):
        assert expected in card


def test_the_card_is_the_same_wherever_and_whenever_the_steps_ran(lineage: Lineage) -> None:
    """Times, code versions, measured figures and addresses of the manifests do not enter it."""
    later = {"code_version": "9.9", "started_at": "2031-01-01T00:00:00+00:00", "duration_s": 9.0, "figures": {"x": 1}}
    manifests = ("dataset", "finetuned", "evaluation", "baseline")
    moved = lineage.model_copy(
        update={name: getattr(lineage, name).model_copy(update=later) for name in manifests}
        | {"spec": _moved(lineage.spec)}
    )
    assert moved.spec != lineage.spec
    assert render(moved) == render(lineage)


def _moved(spec):  # type: ignore[no-untyped-def]
    """`spec` with its artifacts in another store."""
    updates = {
        name: value.model_copy(update={"uri": value.uri.replace("file:///", "s3://bucket/")})
        for name in ("dataset", "finetuned", "evaluation")
        if isinstance(value := getattr(spec, name), Content)
    }
    return spec.model_copy(update=updates)


def test_tags_and_metrics_hold_both_scores_and_the_lineage(lineage: Lineage) -> None:
    """What MLflow lists beside the version and in its run."""
    tags, metrics = version_tags(lineage), run_metrics(lineage)
    assert tags["slipway.score"] == tags["slipway.baseline_score"] == "0.7500 [0.7000, 0.8000]"
    assert tags["slipway.base_model"] == "new model, 2 layers of width 128, vocabulary 2048"
    assert len(tags["slipway.recipe_digest"]) == 64
    assert metrics["released/exact_match_low"] == 0.7
    assert metrics["evaluate/rows_per_s"] == 12.5
    assert metrics["evaluate_compressed/peak_memory_mib"] == 900
