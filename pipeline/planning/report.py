"""A plan for people and for programs: one line, rows of tables, JSON."""

from dataclasses import asdict
from typing import Any

from pipeline.planning.choose import Candidate
from pipeline.planning.forecasts import Forecast
from pipeline.planning.hardware import GB
from pipeline.planning.moments import KINDS, Moment
from pipeline.planning.plans import Plan, describe

MEGA = 10**6


def summary(plan: Plan) -> str:
    """`4 ranks on 2 nodes, zero 1: 1.32 GB of 4.00 GB a rank; 0.31 s a step, 3,400 tokens/s, as far as can be said`"""
    found = plan.expected or plan.choice.smallest
    ranks = plan.work.settings.world_size
    where = f"{ranks} rank{'s' * (ranks > 1)} on {plan.hardware.nodes} node{'s' * (plan.hardware.nodes > 1)}"
    if found is None:
        return f"finetune, {where}: {plan.problem}"
    of_what = "of its accelerator" if plan.hardware.accelerated else "of its node"
    chosen = " (chosen)" if plan.work.settings.parallelism.auto and plan.expected else ""
    return (
        f"finetune, {where}, {describe(found)}{chosen}: at most {_gb(found.memory.device)} of"
        f" {_gb(plan.hardware.rank_bytes)} {of_what} a rank; about {_seconds(found.time.total_s)} a step"
        f" of {found.time.tokens:,} tokens, {found.time.tokens_per_s:,.0f} tokens/s"
    )


def memory_rows(found: Forecast) -> list[tuple[str, ...]]:
    """A row for each moment of a step: its name, GB of each kind, what the allocator keeps, the sum."""
    memory = found.memory
    return [
        (
            moment.name,
            *(_number(amount.total) for amount in moment.amounts.values()),
            _number(memory.kept(moment)),
            _number(_outside(found)),
            _number(moment.alive + memory.kept(moment) + _outside(found)),
        )
        for moment in memory.moments
    ]


MEMORY_COLUMNS = ("moment", *KINDS, "kept", "process", "sum")


def _outside(found: Forecast) -> float:
    """What a rank takes beside tensors: libraries, and on cores the process itself."""
    return found.memory.framework + (0.0 if found.memory.accelerated else found.memory.host)


def candidate_rows(plan: Plan, limit: int) -> list[tuple[str, ...]]:
    """Parallelism, GB a rank, seconds a step, verdict and why: those that work, the first `limit`."""
    worked = [candidate for candidate in plan.choice.candidates if candidate.forecast]
    return [_candidate_row(candidate) for candidate in worked[:limit]]


def _candidate_row(candidate: Candidate) -> tuple[str, ...]:
    found = candidate.forecast
    assert found is not None
    memory, step = _gb(found.memory.device), _seconds(found.time.total_s)
    return describe(found), memory, step, candidate.verdict, candidate.reason


def refused_reasons(plan: Plan) -> dict[str, int]:
    """Why candidates do not work, with how many each reason rules out."""
    counts: dict[str, int] = {}
    for candidate in plan.choice.candidates:
        if candidate.forecast is None:
            reason = candidate.reason.partition("; nearest")[0]
            counts[reason] = counts.get(reason, 0) + 1
    return counts


def as_json(plan: Plan) -> dict[str, Any]:
    """Everything: bytes and seconds."""
    return {
        "fits": not plan.problem,
        "problem": plan.problem,
        "remedies": list(plan.remedies),
        "parameters": plan.work.shape.parameters,
        "trained_parameters": plan.work.trained_parameters,
        "ranks": plan.work.settings.world_size,
        "hardware": {name: asdict(figure) for name, figure in plan.hardware.figures.items()},
        "expected": _forecast_json(plan.expected) if plan.expected else None,
        "candidates": [
            {
                "parallelism": _spread_json(candidate.parallelism.model_dump()),
                "verdict": candidate.verdict,
                "reason": candidate.reason,
                "rank_bytes": round(candidate.forecast.memory.device) if candidate.forecast else None,
                "step_s": _rounded(candidate.forecast.time.total_s) if candidate.forecast else None,
            }
            for candidate in plan.choice.candidates
        ],
    }


def _forecast_json(found: Forecast) -> dict[str, Any]:
    time, memory = found.time, found.memory
    return {
        "parallelism": _spread_json(found.parallelism.model_dump()),
        "rank_bytes": round(memory.device),
        "rise_bytes": round(memory.rise),
        "node_bytes": round(found.node_bytes),
        "peak": memory.peak.name,
        "moments": [_moment_json(moment) | {"kept": round(memory.kept(moment))} for moment in memory.moments],
        "step_s": _rounded(time.total_s),
        "compute_s": _rounded(time.compute_s),
        "bubble_s": _rounded(time.bubble_s),
        "optimizer_s": _rounded(time.optimizer_s),
        "exchange_s": _rounded(time.exchange_s),
        "sent_bytes": {part.kind: round(part.bytes) for part in time.traffic},
        "step_tokens": time.tokens,
        "tokens_per_s": round(time.tokens_per_s, 1),
    }


def _moment_json(moment: Moment) -> dict[str, Any]:
    return {"name": moment.name, **{kind: round(amount.total) for kind, amount in moment.amounts.items()}}


def _spread_json(parallelism: dict[str, Any]) -> dict[str, int]:
    return {kind: parallelism[kind] for kind in ("zero", "tensor", "pipeline", "sequence")}


def _rounded(seconds: float) -> float:
    return float(f"{seconds:.4g}")


def _gb(size: float) -> str:
    return f"{size / GB:,.2f} GB"


def _number(size: float) -> str:
    return f"{size / GB:,.3f}" if size < 10 * GB else f"{size / GB:,.1f}"


def _seconds(seconds: float) -> str:
    return f"{seconds * 1000:,.3g} ms" if seconds < 1 else f"{seconds:,.3g} s"
