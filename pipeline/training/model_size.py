"""How large a model is, and how many floating-point operations a step of its training takes."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from pipeline.training.engine import whole_shape


@dataclass(frozen=True)
class ModelSize:
    """What a causal language model multiplies by, whole, however it is spread."""

    weights: int
    """Of its linear layers but the last."""
    head: int
    """Weights of the layer that gives the logits."""
    layers: int
    width: int
    """Attention heads × head size."""
    linear: tuple[int, int]
    """Outputs and inputs of the largest linear layer but the last."""

    @classmethod
    def of(cls, model: nn.Module) -> "ModelSize":
        """Args: model: one of transformers, before anything is added to it."""
        config, head = model.config, model.get_output_embeddings()
        shapes = [
            whole_shape(module.weight)
            for module in model.modules()
            if isinstance(module, nn.Linear) and module is not head
        ]
        outputs, inputs = max(shapes, key=np.prod)
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return cls(
            weights=int(sum(map(np.prod, shapes))),
            head=int(np.prod(whole_shape(head.weight))),
            layers=config.num_hidden_layers,
            width=config.num_attention_heads * head_dim,
            linear=(outputs, inputs),
        )

    def step_flops(self, lengths: NDArray[np.int64], counted: NDArray[np.int64], *, frozen: bool = False) -> float:
        """Of the forward and the backward pass over rows of `lengths` tokens.

        Chowdhery et al. 2022, "PaLM", appendix B: 6 for each weight and token, and 12 · layers · width · length for
        each token's attention. Nothing for what is computed twice to save memory, and nothing for padding. Logits are
        needed of the tokens alone whose loss counts. A teacher's and a reference's passes are left out.

        Args:
            counted: how many tokens of each row count in the loss.
            frozen: the weights get no gradient of their own, as with LoRA: 4 for each instead of 6.
        """
        per_weight = 4 if frozen else 6
        return float(
            per_weight * (self.weights * lengths.sum() + self.head * counted.sum())
            + 12 * self.layers * self.width * (lengths.astype(np.float64) ** 2).sum()
        )
