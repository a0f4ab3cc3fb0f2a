"""The compression ladder: whether a quantized form keeps enough of the score, and what to say about it."""

from typing import Literal

from pipeline.contracts.specs import Estimate, Scores, Trial
from pipeline.errors import GateRefused, IntegrityError
from pipeline.evaluation.predictions import Prediction, metric_values
from pipeline.evaluation.scoring import interval
from pipeline.evaluation.statistics import Bootstrap

Quantized = Literal["w4a16", "w8a8"]


def recovery(
    quantized: list[Prediction], baseline: list[Prediction], *, metric: str, bootstrap: Bootstrap
) -> Estimate | None:
    """Quantized ÷ baseline score with its paired interval; None if the baseline scores 0.

    Raises:
        IntegrityError: the two were not scored on the same rows.
    """
    if [(row.prompt, row.reference) for row in quantized] != [(row.prompt, row.reference) for row in baseline]:
        raise IntegrityError(
            f"the baseline was evaluated on other rows ({len(baseline)}) than the quantized model ({len(quantized)});"
            " run evaluate again with the same dataset and evaluate.max_rows"
        )
    return bootstrap.ratio(metric_values(quantized, metric), metric_values(baseline, metric))


def judge(
    scheme: Quantized, scores: Scores, kept: Estimate | None, *, baseline: Scores, metric: str, min_recovery: float
) -> Trial:
    """Passed if the lower end of the recovery's interval reaches `min_recovery`.

    Where the unquantized model scores 0 no recovery can be shown, so a quantized form cannot pass.
    """
    figures, kept_of = f"{scheme} has {metric} {interval(scores.primary(metric))}", baseline.primary(metric).value
    if kept is None:
        reason = f"{figures}; the unquantized model scores 0 on {baseline.rows} rows, so that no recovery can be shown"
        return Trial(scheme=scheme, scores=scores, recovery=None, passed=False, reason=reason)
    passed = kept.low >= min_recovery
    reason = (
        f"{figures} against {kept_of:.4f} unquantized: recovery {interval(kept)}, whose lower end"
        f" {'reaches' if passed else 'does not reach'} min_recovery {min_recovery:g}"
    )
    return Trial(scheme=scheme, scores=scores, recovery=kept, passed=passed, reason=reason)


def unquantized(baseline: Scores, before: list[Trial]) -> Trial:
    """The last rung: the model itself, which keeps everything."""
    why = f"none of {', '.join(trial.scheme for trial in before)} passed" if before else "the ladder names nothing else"
    return Trial(
        scheme="none",
        scores=baseline,
        recovery=Estimate(value=1, low=1, high=1),
        passed=True,
        reason=f"the unquantized model is released, since {why}",
    )


def refuse(trials: list[Trial]) -> GateRefused:
    """What to raise when no rung passed and the ladder does not end in `none`."""
    reasons = "; ".join(trial.reason for trial in trials)
    return GateRefused(
        f"no rung of the ladder keeps enough of the score: {reasons}. Lower compress.min_recovery, evaluate on more"
        " rows for a narrower interval, or end compress.ladder with none"
    )
