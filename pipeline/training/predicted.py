"""What a training was expected to take, beside what it took: computed by the first rank for the rows that it had."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.planning import shapes
from pipeline.planning.hardware import measured_cores
from pipeline.planning.memory import stage_memory
from pipeline.planning.shapes import ModelShape
from pipeline.planning.speed import step_time
from pipeline.planning.workload import Workload
from pipeline.training.batches import Sequence
from pipeline.training.memory import PeakMemory
from pipeline.training.place import Place
from pipeline.training.plan import TrainingPlan
from pipeline.training.shares import Shares
from pipeline.training.speeds import Speeds
from pipeline.training.tokens import TokenFile

MB = 1e6


def figures(
    plan: TrainingPlan,
    shares: Shares,
    place: Place,
    tokens: TokenFile,
    *,
    measured: PeakMemory,
    speeds: Speeds,
    resumed: bool,
) -> dict[str, float]:
    """`predicted_memory_mb` and `measured_memory_mb` of this rank; on cores also `predicted_tokens_per_s`, from the
    speed that they were measured to have. Nothing is predicted of a kind of model that cannot be planned, and of a rank
    that never had a row."""
    found = {"measured_memory_mb": round(measured.peak_bytes / MB, 1)}
    try:
        shape = _shape(plan.model_path)
        teacher = _shape(plan.teacher_path) if plan.teacher_path else None
    except shapes.UnknownShape as error:
        print(f"no forecast: {error}", flush=True)
        return found
    load = Load.of(shares, place, tokens)
    if load is None:
        return found
    accelerated = torch.cuda.is_available()
    work = Workload(
        shape=shape,
        settings=plan.settings,
        sequence_tokens=load.longest,
        accelerated=accelerated,
        sequences=load.most_sequences,
        counted_share=load.most_counted,
        teacher=teacher,
        saves=len(shares.schedule.steps) > plan.settings.checkpoint_every_steps,
        resumes=resumed,
    )
    found["predicted_memory_mb"] = round(stage_memory(work, work.stages[place.stage]).rise / MB, 1)
    if not accelerated and speeds.measured:
        slowest = min(speeds.measured) / 1e12
        usual = replace(work, sequence_tokens=load.mean, sequences=None, counted_share=load.mean_counted)
        step_s = step_time(usual, measured_cores(plan.settings, slowest)).total_s
        found["gemm_tflops"] = round(slowest, 4)
        found["predicted_tokens_per_s"] = round(load.step_tokens / step_s, 1)
    return found


@dataclass(frozen=True)
class Load:
    """What the micro-batches of one rank hold."""

    longest: int
    """Tokens of a sequence, padding included, in the longest of them."""
    mean: int
    most_sequences: int
    most_counted: float
    """The tokens that have a weight in the loss, as a share of the longest's, padding included: in the fullest."""
    mean_counted: float
    step_tokens: float
    """Of a step over all ranks, on average, without padding."""

    @classmethod
    def of(cls, shares: Shares, place: Place, tokens: TokenFile) -> "Load | None":
        """None if there is no row for this rank."""
        learnt = tokens.lengths - 1 if shares.settings.prompt_loss_weight else tokens.answers
        steps = shares.schedule.steps
        micro_batches = [
            batch for step in range(1, len(steps) + 1) for batch in shares.of(step, place.data_rank) if batch
        ]
        if not micro_batches:
            return None
        lengths = [max(_sum(tokens.lengths, [sequence]) for sequence in batch) for batch in micro_batches]
        counted = [_sum(learnt, batch) for batch in micro_batches]
        longest, mean = max(lengths), sum(lengths) / len(lengths)
        most = max(map(len, micro_batches))
        usual = sum(map(len, micro_batches)) / len(micro_batches)
        return cls(
            longest=longest,
            mean=round(mean),
            most_sequences=most,
            most_counted=min(1.0, max(counted) / (most * longest)),
            mean_counted=min(1.0, sum(counted) / len(counted) / (usual * mean)),
            step_tokens=sum(_sum(tokens.lengths, step) for step in steps) / len(steps),
        )


def _sum(values: NDArray[np.int64], sequences: Iterable[Sequence]) -> int:
    """Of all rows of `sequences`."""
    return int(values[list(chain.from_iterable(sequences))].sum())


def _shape(folder: Path) -> ModelShape:
    path = folder / "config.json"
    return shapes.from_config(json.loads(path.read_bytes()), str(path))
