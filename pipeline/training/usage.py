"""What a training gets out of its devices: floating-point operations per second, and the memory that it takes."""

from dataclasses import dataclass

import numpy as np
import torch

from pipeline.contracts.finetune import Finetune
from pipeline.training.batches import Sequence
from pipeline.training.memory import anonymous_bytes
from pipeline.training.model_size import ModelSize
from pipeline.training.speeds import Speeds
from pipeline.training.tokens import TokenFile

OF_PEAK = "model_flops_utilization"
"""The figure's name where the devices' peak is known."""
OF_GEMM = "share_of_measured_gemm"
"""And where it is not: of what the ranks reached in products of matrices when the training began."""


@dataclass(frozen=True)
class Utilization:
    """The share of the devices' floating-point operations that go into the model."""

    size: ModelSize
    tokens: TokenFile
    settings: Finetune
    name: str
    """OF_PEAK or OF_GEMM."""
    available: float
    """FLOP/s of all ranks together."""

    @classmethod
    def against(cls, speeds: Speeds, size: ModelSize, tokens: TokenFile, settings: Finetune) -> "Utilization":
        """Against the devices' peaks if all are known, else against what was measured."""
        if all(speeds.peaks):
            return cls(size, tokens, settings, OF_PEAK, sum(speeds.peaks))
        return cls(size, tokens, settings, OF_GEMM, sum(speeds.measured))

    def flops(self, step: list[Sequence]) -> float:
        """Of one optimizer step."""
        rows = np.array([row for sequence in step for row in sequence])
        lengths = self.tokens.lengths[rows]
        counted = lengths - 1
        if not self.settings.prompt_loss_weight:
            counted = self.tokens.answers[rows]
        return self.size.step_flops(lengths, counted, frozen=self.settings.method == "lora")

    def of(self, steps: list[list[Sequence]], seconds: float) -> float:
        """What `steps` used of the devices in `seconds`."""
        return sum(map(self.flops, steps)) / seconds / self.available


def memory_bytes() -> int:
    """On an accelerator the most that torch has had in use at once; elsewhere what this process has written to and
    holds now: parameters, gradients, optimizer state, activations, and the libraries' own."""
    return int(torch.cuda.max_memory_allocated()) if torch.cuda.is_available() else anonymous_bytes()
