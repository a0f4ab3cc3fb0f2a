"""What a training minimises: the rows' own tokens, a teacher's distribution, or pairs of answers.

Each is a module whose forward gives a sum in nats, which the trainer divides by the weight of the whole step.
"""

from typing import Any

import torch
from torch import Tensor, nn

from pipeline.contracts.finetune import Distill, Dpo
from pipeline.training.loss import MicroBatch, WeightedLoss, counted_logits, token_losses


class DistillLoss(WeightedLoss):
    """Cross-entropy with the rows and divergence from a teacher, token by token (Hinton et al. 2015, section 2).

    A token's loss is kl_weight · T² · KL(teacher ‖ student), both at temperature T, + (1 - kl_weight) · cross-entropy.
    """

    def __init__(self, model: nn.Module, teacher: Any, settings: Distill) -> None:
        super().__init__(model)
        # Hidden from DeepSpeed and from the state dict: it is not trained.
        self._teacher = [teacher]
        self.settings = settings

    def forward(self, batch: MicroBatch) -> Tensor:
        with torch.no_grad():
            wanted = counted_logits(self._teacher[0], batch)
        logits, counted = counted_logits(self.model, batch), batch.find_counted()
        temperature, kl_weight = self.settings.temperature, self.settings.kl_weight
        divergence = nn.functional.kl_div(
            nn.functional.log_softmax(logits.float() / temperature, dim=-1),
            nn.functional.log_softmax(wanted.float() / temperature, dim=-1),
            reduction="none",
            log_target=True,
        ).sum(dim=-1)
        own = token_losses(logits, batch.targets.flatten()[counted])
        losses = kl_weight * temperature**2 * divergence + (1 - kl_weight) * own
        return (losses * batch.weights.flatten()[counted]).sum()


class DpoLoss(WeightedLoss):
    """Direct preference optimization (Rafailov et al. 2023, equation 7): a sum over pairs, line 2i chosen, 2i + 1 not.

    A batch without `reference` gives the answers' log-likelihoods instead, of shape (lines,): so those of the model
    before its training are found, and no second model stays in memory.
    """

    def __init__(self, model: nn.Module, settings: Dpo) -> None:
        super().__init__(model)
        self.settings = settings

    def forward(self, batch: MicroBatch) -> Tensor:
        counted, (lines, longest) = batch.find_counted(), batch.ids.shape
        losses = token_losses(counted_logits(self.model, batch), batch.targets.flatten()[counted])
        losses = losses * batch.weights.flatten()[counted]
        likelihoods = -losses.new_zeros(lines).index_add(0, counted // longest, losses)
        if batch.reference is None:
            return likelihoods
        gains = likelihoods - batch.reference
        margins = self.settings.beta * (gains[0::2] - gains[1::2])
        smoothing = self.settings.label_smoothing
        logsigmoid = nn.functional.logsigmoid
        losses = -((1 - smoothing) * logsigmoid(margins) + smoothing * logsigmoid(-margins))
        # A rank without a pair in this step has lines of padding, whose margin is 0 but whose loss would not be.
        return (losses * batch.weights[0::2].any(dim=-1)).sum()
