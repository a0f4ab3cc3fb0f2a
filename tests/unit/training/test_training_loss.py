"""The loss: weighted by tokens, blind to padding, and the same packed or not."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from pipeline.training.loss import Collator, WeightedLoss, counted_logits, document_mask, token_losses
from pipeline.training.tokens import TokenFile, TokenWriter

LENGTHS = (9, 5, 12, 7)


@pytest.fixture
def tokens(tmp_path: Path) -> TokenFile:
    """Four rows of random tokens; the last three of each are the answer."""
    return write(tmp_path)


def write(folder: Path, *, pairs: bool = False) -> TokenFile:
    random = np.random.default_rng(0)
    writer = TokenWriter(folder, pairs=pairs, shard_tokens=20)
    for chosen in range(0, len(LENGTHS), 2):
        lengths = np.array(LENGTHS[chosen : chosen + 2])
        answers = [np.arange(length) >= length - 3 for length in lengths]
        writer.add(random.integers(1, 50, size=lengths.sum(), dtype=np.int32), np.concatenate(answers), lengths)
    writer.close()
    return TokenFile(folder)


@pytest.fixture(params=["Llama", "Qwen2", "Qwen3"])
def model(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, f"{request.param}Config")(
        vocab_size=50, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=32,
    )  # fmt: skip
    return WeightedLoss(getattr(transformers, f"{request.param}ForCausalLM")(config)).eval()


PACKED = {
    "two in a sequence": [(0, 1), (2, 3)],
    "all in one": [(3, 2, 0, 1)],
    "one alone": [(0, 1, 3), (2,)],
}


@pytest.mark.parametrize("packed", PACKED)
def test_packed_and_unpacked_rows_have_the_same_loss_and_gradients(model: Any, tokens: TokenFile, packed: str) -> None:
    """Rows that share a sequence do not see each other, and no row predicts the next one's first token."""
    collator = Collator(tokens, pad_id=0, prompt_weight=0.2)
    apart, gradients = loss_and_gradients(model, collator, [(0,), (1,), (2,), (3,)])
    together, packed_gradients = loss_and_gradients(model, collator, PACKED[packed])
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-6)
    assert float(max(gradient.abs().max() for gradient in gradients)) > 0.01
    torch.testing.assert_close(packed_gradients, gradients, rtol=0, atol=1e-6)


def test_a_row_that_stands_in_a_sequence_twice_does_not_see_itself(model: Any, tokens: TokenFile) -> None:
    """At the seam of two epochs."""
    collator = Collator(tokens, pad_id=0, prompt_weight=0.2)
    torch.testing.assert_close(
        model(collator.collate([(0, 0)])), 2 * model(collator.collate([(0,)])), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("packed", [False, True])
def test_a_share_without_rows_counts_for_nothing(model: Any, tokens: TokenFile, packed: bool) -> None:
    """A batch smaller than the ranks: the model takes it, and neither loss nor gradients change."""
    collator = Collator(tokens, pad_id=0, prompt_weight=0.2, packed=packed)
    loss, gradients = loss_and_gradients(model, collator, [])
    assert float(loss) == 0.0
    assert not any(gradient.any() for gradient in gradients)
    assert collator.weight([]) == collator.num_tokens([]) == 0


def test_packed_micro_batches_have_the_same_tensors_whatever_is_in_them(tokens: TokenFile) -> None:
    """The stages of a pipeline are told what to expect by the first of them."""
    collator = Collator(tokens, pad_id=0, prompt_weight=0.2, packed=True)
    for sequences in ([], [(0,)], [(0, 1)]):
        batch = collator.collate(sequences)
        assert batch.positions is not None
        assert batch.documents is not None
        assert batch.positions.shape == batch.documents.shape == batch.ids.shape


def test_pairs_have_a_line_for_each_answer(tmp_path: Path) -> None:
    """Line 2i is chosen and 2i + 1 rejected, each with its own reference; a step weighs as many as it has pairs."""
    collator = Collator(write(tmp_path, pairs=True), pad_id=0, prompt_weight=0.0)
    collator.reference = np.array([1, 2, 3, 4], dtype=np.float32)
    batch = collator.collate([(2, 3), (0, 1)])
    assert [row.tolist() for row in batch.ids] == [padded(collator.tokens.row(row)[0]) for row in (2, 3, 0, 1)]
    assert batch.reference is not None
    assert batch.reference.tolist() == [3, 4, 1, 2]
    assert batch.documents is None
    assert batch.weights.sum(dim=1).tolist() == [3, 3, 3, 3]
    assert collator.weight([(2, 3), (0, 1)]) == 2
    empty = collator.collate([])
    assert (empty.ids.shape, empty.weights.any().item()) == ((2, 1), False)


def padded(ids: Any) -> list[int]:
    return [*ids.tolist(), *[0] * (max(LENGTHS) - len(ids))]


def loss_and_gradients(model: Any, collator: Collator, sequences: list[tuple[int, ...]]) -> tuple[Any, list[Any]]:
    """Of the mean over the tokens, as a training takes it."""
    model.zero_grad()
    loss = model(collator.collate(sequences)) / max(collator.weight(sequences), 1e-9)
    loss.backward()
    return loss.detach(), [parameter.grad.clone() for parameter in model.parameters()]


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
