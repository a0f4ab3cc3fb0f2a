"""The loss: a weighted mean over the tokens of a whole optimizer step, however they lie on ranks and micro-batches."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
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
    counted: Tensor | None = None
    """(counted tokens,): which of the flattened tokens have a weight; None before `to`."""

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        return self.ids, self.targets, self.weights, self.positions, self.documents, self.reference

    def to(self, device: torch.device) -> "MicroBatch":
        """On `device`. What counts is found before: to find it on a GPU would be to wait for the GPU."""
        moved = (None if tensor is None else tensor.to(device, non_blocking=True) for tensor in self.tensors)
        return replace(MicroBatch(*moved), counted=self.find_counted().to(device, non_blocking=True))

    def find_counted(self) -> Tensor:
        """See `counted`."""
        if self.counted is not None:
            return self.counted
        return ((self.weights != 0) & (self.targets != IGNORED)).flatten().nonzero()[:, 0]

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
    needs no mask. Rows that share one get positions from 0 each, and a mask that keeps them apart. The two rows of a
    pair have a line each.
    """

    def __init__(self, tokens: TokenFile, *, pad_id: int, prompt_weight: float, packed: bool = False) -> None:
        """
        Args:
            packed: make positions and documents even where no rows share a sequence: every rank's batches are alike.
        """
        self.tokens = tokens
        self.pad_id = pad_id
        self.prompt_weight = np.float32(prompt_weight)
        self.packed = packed
        self.reference: NDArray[np.float32] | None = None
        """See `MicroBatch.reference`; by row."""
        self._row_weights = tokens.answers + float(self.prompt_weight) * (tokens.lengths - 1 - tokens.answers)

    def weight(self, sequences: list[Sequence]) -> float:
        """What turns a sum of losses over `sequences` into a mean: their tokens' weight, or the number of pairs."""
        if self.tokens.pairs:
            return float(len(sequences))
        return float(self._row_weights[_rows(sequences)].sum())

    def num_tokens(self, sequences: list[Sequence]) -> int:
        return int(self.tokens.lengths[_rows(sequences)].sum())

    def collate(self, sequences: list[Sequence]) -> MicroBatch:
        """A micro-batch. One of no sequences, a rank's share of a small step, is padding that counts for nothing."""
        if not sequences:
            return self._padding()
        lines: list[Sequence] = sequences
        if self.tokens.pairs:
            lines = [(row,) for sequence in sequences for row in sequence]
        rows = _rows(lines)
        lengths = self.tokens.lengths[rows]
        ends = np.cumsum(lengths)
        ends_of_lines = ends[np.cumsum([len(line) for line in lines]) - 1]
        sizes = np.diff(ends_of_lines, prepend=0)
        shape = (len(lines), int(sizes.max()))
        # All tokens of the batch end to end: each one's place in its row, and in the flattened batch.
        row_ids, is_answer = self.tokens.rows(rows)
        place = np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)
        target = np.arange(ends[-1]) + np.repeat(np.arange(len(lines)) * shape[1] - ends_of_lines + sizes, sizes)
        # What predicts a token lies before it; a row's first token is predicted by nothing.
        predicted = place != 0
        predicting = target[predicted] - 1
        ids = np.full(shape, self.pad_id, dtype=np.int64)
        targets = np.full(shape, IGNORED, dtype=np.int64)
        weights = np.zeros(shape, dtype=np.float32)
        ids.reshape(-1)[target] = row_ids
        targets.reshape(-1)[predicting] = row_ids[predicted]
        weights.reshape(-1)[predicting] = np.where(is_answer[predicted], np.float32(1), self.prompt_weight)
        positions = documents = None
        if self.packed or len(rows) > len(lines):
            positions, documents = np.zeros(shape, dtype=np.int64), np.full(shape, -1, dtype=np.int64)
            positions.reshape(-1)[target] = place
            # By its place in the batch: a row may stand in a sequence twice, in two epochs.
            documents.reshape(-1)[target] = np.repeat(np.arange(len(rows)), lengths)
        return MicroBatch(
            ids=torch.from_numpy(ids),
            targets=torch.from_numpy(targets),
            weights=torch.from_numpy(weights),
            positions=None if positions is None else torch.from_numpy(positions),
            documents=None if documents is None else torch.from_numpy(documents),
            reference=None if self.reference is None else torch.from_numpy(self.reference[[line[0] for line in lines]]),
            counted=torch.from_numpy(np.flatnonzero(weights)),
        )

    def _padding(self) -> MicroBatch:
        shape = (2 if self.tokens.pairs else 1, 1)
        return MicroBatch(
            ids=torch.full(shape, self.pad_id),
            targets=torch.full(shape, IGNORED),
            weights=torch.zeros(shape),
            positions=torch.zeros(shape, dtype=torch.long) if self.packed else None,
            documents=torch.full(shape, -1) if self.packed else None,
            reference=None if self.reference is None else torch.zeros(shape[0]),
            counted=torch.zeros(0, dtype=torch.long),
        )


def _rows(sequences: list[Sequence]) -> NDArray[np.int64]:
    return np.fromiter(chain.from_iterable(sequences), dtype=np.int64)


def document_mask(documents: Tensor) -> Tensor:
    """(sequences, 1, longest, longest): True where key and query are of one document and the key is not later.

    Padding looks at padding.
    """
    size = documents.shape[1]
    causal = torch.ones(size, size, dtype=torch.bool, device=documents.device).tril()
    same = documents[:, None, :] == documents[:, :, None]
    return (causal & same)[:, None]


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Of each token, in nats, shaped as `targets`; 0 where the target is IGNORED.

    Args:
        logits: of shape (*targets, vocabulary).
    """
    losses = nn.functional.cross_entropy(
        logits.float().flatten(0, -2), targets.flatten(), ignore_index=IGNORED, reduction="none"
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
        counted = batch.find_counted()
        losses = token_losses(counted_logits(self.model, batch), batch.targets.flatten()[counted])
        return (losses * batch.weights.flatten()[counted]).sum()


def counted_logits(model: nn.Module, batch: MicroBatch) -> Tensor:
    """(counted tokens, vocabulary): of a causal language model of transformers, for the tokens that have a weight.

    A vocabulary's worth of logits is by far the largest tensor of a small model, and where only answers count, most of
    it would be multiplied by zero.
    """
    extra: dict[str, Any] = {}
    if batch.positions is not None:
        extra["position_ids"] = batch.positions
    if batch.documents is not None:
        extra["attention_mask"] = document_mask(batch.documents)
    with _given_only(model.get_output_embeddings(), batch.find_counted()):
        return model(input_ids=batch.ids, use_cache=False, **extra).logits[0]


@contextmanager
def _given_only(head: nn.Module, tokens: Tensor) -> Iterator[None]:
    """Within it, the output layer `head` sees `tokens` of the flattened (sequences, longest) alone, as one sequence."""

    def choose(_: nn.Module, inputs: tuple[Tensor]) -> Tensor:
        return inputs[0].flatten(0, 1).index_select(0, tokens)[None]

    hook = head.register_forward_pre_hook(choose)
    try:
        yield
    finally:
        hook.remove()
