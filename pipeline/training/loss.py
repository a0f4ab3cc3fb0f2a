"""The loss: a weighted mean over the tokens of a whole optimizer step, however they lie on ranks and micro-batches."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.training.batches import Sequence
from pipeline.training.tokens import TokenFile

IGNORED = -100


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """Tensors of shape (sequences, longest sequence)."""

    ids: Tensor
    targets: Tensor
    """The next token, or IGNORED."""
    weights: Tensor
    positions: Tensor | None = None
    documents: Tensor | None = None
    """Which row each token is of, where several rows share a sequence; None for plain causal attention."""
    reference: Tensor | None = None
    """(sequences,): the log-likelihood of each answer before the training, where answers are compared."""

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        return self.ids, self.targets, self.weights, self.positions, self.documents, self.reference

    def to(self, device: torch.device) -> "MicroBatch":
        return MicroBatch(*(None if tensor is None else tensor.to(device) for tensor in self.tensors))

    def __eq__(self, other: object) -> bool:
        """DeepSpeed makes sure that the ranks which hold slices of one layer have the same batch."""
        if not isinstance(other, MicroBatch):
            return NotImplemented
        pairs = zip(self.tensors, other.tensors, strict=True)
        return all(a is b or (a is not None and b is not None and torch.equal(a, b)) for a, b in pairs)

    __hash__ = None  # type: ignore[assignment]

    def part(self, index: int, parts: int) -> "MicroBatch":
        """One of `parts` equal parts of every sequence, with the positions that its tokens have in the whole."""
        if parts == 1:
            return self
        length = -(-self.ids.shape[1] // parts)
        missing = length * parts - self.ids.shape[1]
        span = slice(index * length, (index + 1) * length)
        positions = torch.arange(length * parts).repeat(len(self.ids), 1)
        ids, weights = (nn.functional.pad(tensor, (0, missing))[:, span] for tensor in (self.ids, self.weights))
        targets = nn.functional.pad(self.targets, (0, missing), value=IGNORED)[:, span]
        return MicroBatch(ids, targets, weights, positions[:, span])


class Collator:
    """Makes tensors of sequences of rows.

    Sequences are padded on the right, where causal attention never looks back from, so a row alone in its sequence
    needs no mask. Rows that share one get positions from 0 each, and a mask that keeps them apart.
    """

    def __init__(self, tokens: TokenFile, *, pad_id: int, prompt_weight: float) -> None:
        self.tokens = tokens
        self.pad_id = pad_id
        self.prompt_weight = prompt_weight
        self.reference: NDArray[np.float32] | None = None
        """See `MicroBatch.reference`; by row."""

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
            documents=torch.from_numpy(document) if packed else None,
            reference=None if self.reference is None else torch.from_numpy(self.reference[[s[0] for s in sequences]]),
        )

    def _weights(self, is_answer: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Of each token but the first, which nothing predicts."""
        return np.where(is_answer[1:], np.float32(1), np.float32(self.prompt_weight))


def document_mask(documents: Tensor) -> Tensor:
    """(sequences, 1, longest, longest): True where key and query are of one document and the key is not later.

    Padding looks at padding.
    """
    size = documents.shape[1]
    causal = torch.ones(size, size, dtype=torch.bool, device=documents.device).tril()
    same = documents[:, None, :] == documents[:, :, None]
    return (causal & same)[:, None]


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Of each token, in nats, shaped as `targets`; 0 where the target is IGNORED."""
    losses = nn.functional.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return losses.view_as(targets)


class WeightedLoss(nn.Module):  # type: ignore[misc]
    """A causal language model whose forward gives the weighted sum of its tokens' losses, in nats."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.config = model.config
        """It says how the layers are sliced for tensor parallelism."""

    def forward(self, batch: MicroBatch) -> Tensor:
        return (token_losses(self.logits(batch), batch.targets) * batch.weights).sum()

    def logits(self, batch: MicroBatch) -> Tensor:
        """Of shape (sequences, longest, vocabulary)."""
        return logits_of(self.model, batch)


def logits_of(model: nn.Module, batch: MicroBatch) -> Tensor:
    """Of a causal language model of transformers."""
    extra: dict[str, Any] = {}
    if batch.positions is not None:
        extra["position_ids"] = batch.positions
    if batch.documents is not None:
        extra["attention_mask"] = document_mask(batch.documents)
    return model(input_ids=batch.ids, use_cache=False, **extra).logits
