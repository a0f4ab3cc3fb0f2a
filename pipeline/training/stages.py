"""A Llama or Qwen model as a list of layers that DeepSpeed can lay out as the stages of a pipeline.

The layers are the model's own modules, so that its state dict, its tied weights and its code stay what they are.
"""

from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from pipeline.training.loss import document_mask

Carried: TypeAlias = "Tensor | tuple[Tensor, Tensor, Tensor]"
"""What a stage passes on: the hidden states; with packed rows also positions and documents."""

EMBEDDINGS = "embeddings"


class _Embedding(nn.Module):  # type: ignore[misc]
    """Token ids to hidden states; at the end of a model with tied embeddings, hidden states to logits."""

    def __init__(self, embed_tokens: nn.Module) -> None:
        super().__init__()
        self.embed_tokens = embed_tokens

    def forward(self, inputs: Carried) -> Carried:
        return _replace(inputs, self.embed_tokens(_hidden(inputs)))

    def logits(self, inputs: Carried) -> Tensor:
        return nn.functional.linear(_hidden(inputs), self.embed_tokens.weight)


class _Block(nn.Module):  # type: ignore[misc]
    """One decoder layer."""

    def __init__(self, layer: nn.Module, rotary: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.rotary = rotary

    def forward(self, inputs: Carried) -> Carried:
        hidden = _hidden(inputs)
        if isinstance(inputs, tuple):
            positions, mask = inputs[1], document_mask(inputs[2])
        else:
            positions, mask = torch.arange(hidden.shape[1], device=hidden.device)[None], None
        embeddings = self.rotary(hidden, positions)
        return _replace(
            inputs, self.layer(hidden, attention_mask=mask, position_ids=positions, position_embeddings=embeddings)
        )


class _Last(nn.Module):  # type: ignore[misc]
    """A module at the end, which nothing but the hidden states concerns."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, inputs: Carried) -> Tensor:
        return self.module(_hidden(inputs))


def layers_of(model: Any) -> list[Any]:
    """Embedding, decoder layers, norm and output of a causal language model, in order.

    Args:
        model: a LlamaForCausalLM, Qwen2ForCausalLM or Qwen3ForCausalLM.
    """
    from deepspeed.pipe import TiedLayerSpec

    inner = model.model
    middle = [*(_Block(layer, inner.rotary_emb) for layer in inner.layers), _Last(inner.norm)]
    if not model.config.tie_word_embeddings:
        return [_Embedding(inner.embed_tokens), *middle, _Last(model.lm_head)]
    tied = {"tied_weight_attr": "embed_tokens.weight"}
    first = TiedLayerSpec(EMBEDDINGS, _Embedding, inner.embed_tokens, **tied)
    last = TiedLayerSpec(EMBEDDINGS, _Embedding, inner.embed_tokens, forward_fn=_Embedding.logits, **tied)
    return [first, *middle, last]


def _hidden(inputs: Carried) -> Tensor:
    return inputs[0] if isinstance(inputs, tuple) else inputs


def _replace(inputs: Carried, hidden: Tensor) -> Carried:
    return (hidden, *inputs[1:]) if isinstance(inputs, tuple) else hidden
