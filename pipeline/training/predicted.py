"""What a training was expected to take, beside what it took: computed by the first rank for the rows that it had."""

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from pipeline.contracts.finetune import Finetune
from pipeline.planning import shapes
from pipeline.planning.hardware import measured_cores
from pipeline.planning.memory import stage_memory
from pipeline.planning.shapes import ModelShape
from pipeline.planning.speed import step_time
from pipeline.planning.workload import Workload
from pipeline.training.batches import Schedule
from pipeline.training.memory import PeakMemory
from pipeline.training.place import Place
from pipeline.training.plan import TrainingPlan
from pipeline.training.tokens import TokenFile

MB = 1e6
SIDE = 768
REPEATS = 5


def gemm_tflops() -> float:
    """What this rank reaches in products of fp32 matrices of SIDE × SIDE, the best of a few, on its threads."""
    left, right = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)
    best = float("inf")
    for _ in range(REPEATS):
        started = time.perf_counter()
        left @ right
        best = min(best, time.perf_counter() - started)
    return float(2 * SIDE**3 / best / 1e12)


def figures(
    plan: TrainingPlan, place: Place, tokens: TokenFile, schedule: Schedule, *, measured: PeakMemory, tflops: float
) -> dict[str, float]:
    """`predicted_memory_mb` and `measured_memory_mb` of the first rank; on cores also `predicted_tokens_per_s`, from
    the speed that this rank was measured to have. Nothing is predicted of a kind of model that cannot be planned."""
    found = {"measured_memory_mb": round(measured.peak_bytes / MB, 1)}
    try:
        shape = _shape(plan.model_path)
        teacher = _shape(plan.teacher_path) if plan.teacher_path else None
    except shapes.UnknownShape as error:
        print(f"no forecast: {error}", flush=True)
        return found
    accelerated = torch.cuda.is_available()
    load = Load.of(schedule, place, plan.settings, tokens)
    work = Workload(
        shape=shape,
        settings=plan.settings,
        sequence_tokens=load.longest,
        accelerated=accelerated,
        counted_share=load.most_counted,
        teacher=teacher,
    )
    found["predicted_memory_mb"] = round(stage_memory(work, work.stages[place.stage]).rise / MB, 1)
    if not accelerated:
        usual = replace(work, sequence_tokens=load.mean, counted_share=load.mean_counted)
        step_s = step_time(usual, measured_cores(plan.settings, tflops)).total_s
        found["gemm_tflops"] = round(tflops, 4)
        found["predicted_tokens_per_s"] = round(load.step_tokens / step_s, 1)
    return found


@dataclass(frozen=True)
class Load:
    """What the micro-batches of one rank hold."""

    longest: int
    """Tokens of a sequence, padding included, in the longest of them."""
    mean: int
    most_counted: float
    """Of their tokens, padding included, the share that has a weight in the loss: in the fullest, beside `longest`."""
    mean_counted: float
    step_tokens: float
    """Of a step over all ranks, on average, without padding."""

    @classmethod
    def of(cls, schedule: Schedule, place: Place, settings: Finetune, tokens: TokenFile) -> "Load":
        learnt = tokens.lengths - 1 if settings.prompt_loss_weight else tokens.answers
        parts = settings.gradient_accumulation * place.data_ranks
        longest, counted, lines = [], [], 1
        for step in range(len(schedule.steps)):
            for micro in range(settings.gradient_accumulation):
                share = schedule.share(step, micro * place.data_ranks + place.data_rank, parts)
                lines = max(lines, len(share))
                longest.append(max(int(tokens.lengths[list(sequence)].sum()) for sequence in share))
                counted.append(sum(int(learnt[list(sequence)].sum()) for sequence in share))
        mean = sum(longest) / len(longest)
        real = sum(int(tokens.lengths[list(sequence)].sum()) for step in schedule.steps for sequence in step)
        return cls(
            longest=max(longest),
            mean=round(mean),
            most_counted=min(1.0, max(counted) / (lines * max(longest))),
            mean_counted=min(1.0, sum(counted) / len(counted) / (lines * mean)),
            step_tokens=real / len(schedule.steps),
        )


def _shape(folder: Path) -> ModelShape:
    path = folder / "config.json"
    return shapes.from_config(json.loads(path.read_bytes()), str(path))
