"""The loss: weighted by tokens, blind to padding, and the same packed or not."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pipeline.training.loss import Collator, WeightedLoss, counted_logits, document_mask, token_losses
from pipeline.training.tokens import TokenFile

LENGTHS = (9, 5, 12, 7)


@pytest.fixture
def tokens(tmp_path: Path) -> TokenFile:
    """Four rows of random tokens; the last three of each are the answer."""
    random = np.random.default_rng(0)
    np.save(tmp_path / "ids.npy", random.integers(1, 50, size=sum(LENGTHS), dtype=np.int32))
    np.save(tmp_path / "answer.npy", np.concatenate([np.arange(length) >= length - 3 for length in LENGTHS]))
    np.save(tmp_path / "starts.npy", np.cumsum([0, *LENGTHS]))
    return TokenFile(tmp_path)


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2
    )
    return WeightedLoss(LlamaForCausalLM(config)).eval()


def test_packed_and_unpacked_rows_have_the_same_loss(model: Any, tokens: TokenFile) -> None:
    """Rows that share a sequence do not see each other, and no row predicts the next one's first token."""
    collator = Collator(tokens, pad_id=0, prompt_weight=0.2)
    apart = model(collator.collate([(0,), (1,), (2,), (3,)]))
    together = model(collator.collate([(0, 1), (2, 3)]))
    torch.testing.assert_close(together, apart, rtol=1e-6, atol=1e-6)


def test_padding_changes_no_loss(model: Any, tokens: TokenFile) -> None:
    """The sum over a batch is the sum over its rows, each by itself."""
    collator = Collator(tokens, pad_id=0, prompt_weight=0.2)
    alone = sum(model(collator.collate([(row,)])) for row in range(4))
    torch.testing.assert_close(model(collator.collate([(0,), (1,), (2,), (3,)])), alone, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("prompt_weight", "expected"), [(0.0, 12.0), (0.5, 12.0 + 0.5 * (sum(LENGTHS) - 4 - 12))])
def test_the_weight_counts_answers_fully_and_prompts_as_asked(
    tokens: TokenFile, prompt_weight: float, expected: float
) -> None:
    """Three answer tokens a row; a row's first token is never predicted. It agrees with the tensors' weights."""
    collator = Collator(tokens, pad_id=0, prompt_weight=prompt_weight)
    sequences = [(0, 1), (2,), (3,)]
    assert collator.weight(sequences) == pytest.approx(expected)
    assert float(collator.collate(sequences).weights.sum()) == pytest.approx(expected)


def test_a_token_sees_neither_its_neighbours_nor_what_comes_later(tokens: TokenFile) -> None:
    """The mask of two packed rows is two triangles."""
    documents = Collator(tokens, pad_id=0, prompt_weight=0.0).collate([(1, 3)]).documents
    assert documents is not None
    mask = document_mask(documents)
    expected = torch.block_diag(torch.ones(5, 5).tril(), torch.ones(7, 7).tril()).bool()
    assert torch.equal(mask[0, 0], expected)


@pytest.mark.parametrize("sequences", [[(0,), (1,), (2,), (3,)], [(0, 1), (2, 3)]], ids=["apart", "packed"])
@pytest.mark.parametrize("prompt_weight", [0.0, 0.3])
def test_logits_of_the_counted_tokens_alone_give_the_loss_of_all(
    model: Any, tokens: TokenFile, sequences: list[tuple[int, ...]], prompt_weight: float
) -> None:
    """And its gradients: what has no weight is left out before the output layer."""
    batch = Collator(tokens, pad_id=0, prompt_weight=prompt_weight).collate(sequences)
    mask = None if batch.documents is None else document_mask(batch.documents)
    logits = model.model(input_ids=batch.ids, attention_mask=mask, position_ids=batch.positions).logits
    wanted = (token_losses(logits, batch.targets) * batch.weights).sum()
    found = model(batch)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
    parameters = list(model.parameters())
    gradients = zip(torch.autograd.grad(found, parameters), torch.autograd.grad(wanted, parameters), strict=True)
    for ours, theirs in gradients:
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert counted_logits(model.model, batch).shape == (int((batch.weights > 0).sum()), 50)


def test_a_batch_without_counted_tokens_has_a_loss_of_zero_and_gradients(model: Any, tokens: TokenFile) -> None:
    """A rank may hold a part of a sequence in which nothing counts; it takes part in the exchange all the same."""
    batch = Collator(tokens, pad_id=0, prompt_weight=0.0).collate([(0,)])
    first_half = batch.part(0, 3)
    loss = model(first_half)
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert all(parameter.grad is not None for parameter in model.parameters())
