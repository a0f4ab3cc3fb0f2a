"""What a forecast takes to be a rank's work is what the rank's micro-batches hold."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.contracts.finetune import Finetune
from pipeline.training.batches import Schedule
from pipeline.training.place import Place
from pipeline.training.predicted import Load
from pipeline.training.shares import Shares
from pipeline.training.tokens import TokenFile, TokenWriter

LENGTHS = [4, 6, 10, 20]


@pytest.fixture
def tokens(tmp_path: Path) -> TokenFile:
    """Rows of LENGTHS, of which the second half are answers."""
    answer = np.concatenate([np.arange(length) >= length // 2 for length in LENGTHS])
    writer = TokenWriter(tmp_path)
    writer.add(np.ones(sum(LENGTHS), dtype=np.int32), answer, np.array(LENGTHS, dtype=np.int32))
    writer.close()
    return TokenFile(tmp_path)


def load(
    tokens: TokenFile, *, rank: int = 0, speeds: tuple[float, ...] | None = None, weight: float = 0
) -> Load | None:
    """Of one of two ranks, in two steps: rows 0 and 1, then 2 and 3."""
    settings = Finetune(nodes=2, batch_size=2, prompt_loss_weight=weight)
    shares = Shares(Schedule([[(0,), (1,)], [(2,), (3,)]]), settings, 2, speeds)
    return Load.of(shares, Place(rank, 2, settings.parallelism), tokens)


def test_the_longest_micro_batch_counts_for_memory_and_the_mean_for_speed(tokens: TokenFile) -> None:
    """The second rank has the rows of 6 and of 20 tokens; answers are half of them."""
    found = load(tokens, rank=1)
    assert found == Load(
        longest=20, mean=13, most_sequences=1, most_counted=0.5, mean_counted=0.5, step_tokens=sum(LENGTHS) / 2
    )


def test_prompts_count_if_they_have_a_weight(tokens: TokenFile) -> None:
    """All but the first token, which nothing predicts."""
    found = load(tokens, rank=1, weight=0.5)
    assert found is not None
    assert found.most_counted == 19 / 20


def test_a_slow_rank_may_have_no_row(tokens: TokenFile) -> None:
    """Then nothing is forecast of it; the other one has all."""
    assert load(tokens, rank=1, speeds=(10.0, 0.1)) is None
    fast = load(tokens, rank=0, speeds=(10.0, 0.1))
    assert fast is not None
    assert (fast.most_sequences, fast.longest) == (2, 20)
