"""How fast each rank multiplies matrices: by its device's data sheet, and measured when the training begins."""

import statistics
import time
from dataclasses import dataclass, replace

import torch
from torch import distributed

from pipeline.contracts.finetune import Finetune
from pipeline.planning.accelerators import ACCELERATORS
from pipeline.training.flat import DTYPES
from pipeline.training.model_size import ModelSize
from pipeline.training.place import Place

DATA_SHEETS = {
    "NVIDIA A10": "a10-24gb",
    "NVIDIA L4": "l4-24gb",
    "NVIDIA L40S": "l40s-48gb",
    "NVIDIA A100-SXM4-40GB": "a100-40gb",
    "NVIDIA A100-SXM4-80GB": "a100-80gb",
    "NVIDIA A100 80GB PCIe": "a100-80gb",
    "NVIDIA H100 80GB HBM3": "h100-80gb",
    "NVIDIA H200": "h200-141gb",
}
"""Accelerators that a plan knows too, by the name that CUDA gives them."""
BALANCE_S = 0.3
"""Long enough for shares that other work on the machine hardly moves."""
GLANCE_S = 0.05
"""For a figure that nothing depends on."""
LEAST_ROUNDS = 3
CORES = (512, 2048)
"""At most so many tokens and so large a side, where cores compute: larger products take memory and are no faster."""
ACCELERATOR = (8192, 8192)
"""And so on accelerators, which need large ones to be busy."""


@dataclass(frozen=True)
class Speeds:
    """FLOP/s of every rank, by rank."""

    peaks: tuple[float, ...]
    """What the data sheet of its device says; 0 where that is not known, and for cores."""
    measured: tuple[float, ...]
    """In products of matrices of the model's own sizes; empty if nothing needed it."""

    def of_data_ranks(self, place: Place) -> tuple[float, ...]:
        """As measured: a group of ranks that work on the same rows is as fast as the slowest of them."""
        groups: list[list[float]] = [[] for _ in range(place.data_ranks)]
        for rank, speed in enumerate(self.measured):
            groups[replace(place, rank=rank).data_rank].append(speed)
        return tuple(map(min, groups))


def find_speeds(size: ModelSize, settings: Finetune, place: Place, *, row_tokens: float) -> Speeds:
    """Looks up, and measures where that is not enough; every rank calls it.

    Ranks of one machine share its cores and memory, so all measure at once, as they will train.

    Args:
        row_tokens: in a row, on average.
    """
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    peaks = _exchange(known_peak(settings.precision), place, device)
    balanced = settings.balance == "measured"
    if all(peaks) and not balanced:
        return Speeds(peaks, ())
    micro_batch = settings.batch_size / place.data_ranks / settings.gradient_accumulation
    most_tokens, side = ACCELERATOR if device.type == "cuda" else CORES
    outputs, inputs = (min(length, side) for length in size.linear)
    tokens = min(max(1, round(micro_batch * row_tokens)), most_tokens)
    seconds = BALANCE_S if balanced else GLANCE_S
    distributed.barrier()
    own = gemm_flops_per_s((tokens, outputs, inputs), DTYPES[settings.precision], device, seconds=seconds)
    return Speeds(peaks, _exchange(own, place, device))


def _exchange(own: float, place: Place, device: torch.device) -> tuple[float, ...]:
    values = torch.zeros(place.world_size, dtype=torch.float64, device=device)
    values[place.rank] = own
    distributed.all_reduce(values)
    return tuple(values.tolist())


def known_peak(precision: str) -> float:
    """FLOP/s of this rank's accelerator by its data sheet, or 0."""
    if not torch.cuda.is_available():
        return 0.0
    sheet = ACCELERATORS.get(DATA_SHEETS.get(torch.cuda.get_device_name(), ""))
    if sheet is None:
        return 0.0
    return (sheet.tflops_fp32 if precision == "fp32" else sheet.tflops) * 1e12


def gemm_flops_per_s(sizes: tuple[int, int, int], dtype: torch.dtype, device: torch.device, *, seconds: float) -> float:
    """The median over `seconds`, for the three products of a linear layer: its outputs, and both gradients.

    Args:
        sizes: tokens, outputs, inputs.
    """
    tokens, outputs, inputs = sizes
    # Values whose products are neither tiny nor infinite in fp16, and no random number drawn from the training's.
    values = torch.full((tokens, inputs), 2**-8, dtype=dtype, device=device)
    weight = torch.full((outputs, inputs), 2**-8, dtype=dtype, device=device)
    flops = 3 * 2 * tokens * outputs * inputs
    taken: list[float] = []
    begun = time.perf_counter()
    while len(taken) <= LEAST_ROUNDS or time.perf_counter() - begun < seconds:
        started = time.perf_counter()
        result = values @ weight.T
        result @ weight
        result.T @ values
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - started)
    return flops / statistics.median(taken[1:])  # the first round sets the library up
