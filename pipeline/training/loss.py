"""The loss: a weighted mean over the tokens of a whole optimizer step, however they lie on ranks and micro-batches."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.training.batches import Sequence
from pipeline.training.tokens import TokenFile

IGNORED = -100


@dataclass(frozen=True)
class MicroBatch:
    """Tensors of shape (sequences, longest sequence)."""

    ids: Tensor
    targets: Tensor
    """The next token, or IGNORED."""
    weights: Tensor
    positions: Tensor | None = None
    mask: Tensor | None = None
    """(sequences, 1, longest, longest), True where a token may look; None for plain causal attention."""

    def to(self, device: torch.device) -> "MicroBatch":
        tensors = (self.ids, self.targets, self.weights, self.positions, self.mask)
        return MicroBatch(*(None if tensor is None else tensor.to(device) for tensor in tensors))


class Collator:
    """Makes tensors of sequences of rows.

    Sequences are padded on the right, where causal attention never looks back from, so a row alone in its sequence
    needs no mask. Rows that share one get positions from 0 each, and a mask that keeps them apart.
    """

    def __init__(self, tokens: TokenFile, *, pad_id: int, prompt_weight: float) -> None:
        self.tokens = tokens
        self.pad_id = pad_id
        self.prompt_weight = prompt_weight

    def weight(self, sequences: list[Sequence]) -> float:
        """The sum of the loss weights of `sequences`."""
        total = 0.0
        for row in (row for sequence in sequences for row in sequence):
            total += float(self._weights(self.tokens.row(row)[1]).sum())
        return total

    def num_tokens(self, sequences: list[Sequence]) -> int:
        lengths = self.tokens.lengths
        return int(sum(lengths[row] for sequence in sequences for row in sequence))

    def collate(self, sequences: list[Sequence]) -> MicroBatch:
        lengths = self.tokens.lengths
        shape = (len(sequences), int(max(sum(lengths[row] for row in sequence) for sequence in sequences)))
        ids = np.full(shape, self.pad_id, dtype=np.int64)
        targets = np.full(shape, IGNORED, dtype=np.int64)
        weights = np.zeros(shape, dtype=np.float32)
        positions = np.zeros(shape, dtype=np.int64)
        document = np.full(shape, -1, dtype=np.int64)
        for line, sequence in enumerate(sequences):
            start = 0
            for row in sequence:
                row_ids, is_answer = self.tokens.row(row)
                end = start + len(row_ids)
                ids[line, start:end] = row_ids
                targets[line, start : end - 1] = row_ids[1:]
                weights[line, start : end - 1] = self._weights(is_answer)
                positions[line, start:end] = np.arange(len(row_ids))
                document[line, start:end] = row
                start = end
        packed = any(len(sequence) > 1 for sequence in sequences)
        return MicroBatch(
            ids=torch.from_numpy(ids),
            targets=torch.from_numpy(targets),
            weights=torch.from_numpy(weights),
            positions=torch.from_numpy(positions) if packed else None,
            mask=_document_mask(torch.from_numpy(positions), torch.from_numpy(document)) if packed else None,
        )

    def _weights(self, is_answer: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Of each token but the first, which nothing predicts."""
        return np.where(is_answer[1:], np.float32(1), np.float32(self.prompt_weight))


def _document_mask(positions: Tensor, document: Tensor) -> Tensor:
    """True where key and query are of one document and the key is not later. Padding looks at padding."""
    size = positions.shape[1]
    causal = torch.ones(size, size, dtype=torch.bool).tril()
    same = document[:, None, :] == document[:, :, None]
    return (causal & same)[:, None]


class WeightedLoss(nn.Module):  # type: ignore[misc]
    """A causal language model whose forward gives the weighted sum of its tokens' losses, in nats."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: MicroBatch) -> Tensor:
        extra = {} if batch.mask is None else {"position_ids": batch.positions, "attention_mask": batch.mask}
        logits = self.model(input_ids=batch.ids, use_cache=False, **extra).logits
        losses = nn.functional.cross_entropy(
            logits.float().flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORED, reduction="none"
        )
        return (losses * batch.weights.flatten()).sum()
