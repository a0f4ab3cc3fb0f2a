"""What a training was expected to take, beside what it took: computed by the first rank for the rows that it had."""

import json
import time
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
    longest, mean = padded_tokens(schedule, place, plan.settings, tokens)
    accelerated = torch.cuda.is_available()
    work = Workload(
        shape=shape, settings=plan.settings, sequence_tokens=longest, accelerated=accelerated, teacher=teacher
    )
    found["predicted_memory_mb"] = round(stage_memory(work, work.stages[place.stage]).rise / MB, 1)
    if not accelerated:
        hardware = measured_cores(plan.settings, tflops)
        usual = Workload(shape=shape, settings=plan.settings, sequence_tokens=mean, accelerated=False, teacher=teacher)
        step_s = step_time(usual, hardware).total_s
        real = sum(int(tokens.lengths[row]) for step in schedule.steps for sequence in step for row in sequence)
        found["gemm_tflops"] = round(tflops, 4)
        found["predicted_tokens_per_s"] = round(real / len(schedule.steps) / step_s, 1)
    return found


def _shape(folder: Path) -> ModelShape:
    path = folder / "config.json"
    return shapes.from_config(json.loads(path.read_bytes()), str(path))


def padded_tokens(schedule: Schedule, place: Place, settings: Finetune, tokens: TokenFile) -> tuple[int, int]:
    """Tokens of a sequence, padding included: in this rank's longest micro-batch, and on average."""
    parts = settings.gradient_accumulation * place.data_ranks
    lengths = [
        max(sum(int(tokens.lengths[row]) for row in sequence) for sequence in share)
        for step in range(len(schedule.steps))
        for micro in range(settings.gradient_accumulation)
        if (share := schedule.share(step, micro * place.data_ranks + place.data_rank, parts))
    ]
    return max(lengths), round(sum(lengths) / len(lengths))
