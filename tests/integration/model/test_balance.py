"""Ranks that are not equally fast share the rows unequally, and learn what one process learns."""

from pathlib import Path
from typing import Any

import pytest
from ranks import BATCH, ForcedSpeeds, small, train_on_ranks, train_plainly, write_model, write_tokens

pytestmark = pytest.mark.integration

AGREE = 1e-5
"""Between losses, in nats, in fp32."""

CASES: dict[str, tuple[dict[str, Any], tuple[float, ...], list[int]]] = {
    "three times as fast": ({"nodes": 2}, (3e9, 1e9), [6, 2]),
    "the second is faster, accumulating": ({"nodes": 2, "gradient_accumulation": 2}, (1e9, 2e9), [2, 6]),
    "too slow for one row, with ZeRO-3": ({"nodes": 2, "parallelism": {"zero": 3}}, (100e9, 1e9), [8, 0]),
    "in slices, each group as fast as its slowest": (
        {"nodes": 4, "parallelism": {"tensor": 2}}, (3e9, 9e9, 6e9, 1e9), [6, 2],
    ),
    "in stages, each group as fast as its slowest": (
        {"nodes": 4, "parallelism": {"pipeline": 2}, "gradient_accumulation": 2}, (9e9, 2e9, 1e9, 6e9), [2, 6],
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokens(tmp_path_factory.mktemp("data") / "tokens")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("llama") / "model", layers=2)


@pytest.fixture(scope="module")
def alone(llama: Path, tokens: Path) -> list[float]:
    """The losses of one process without DeepSpeed."""
    return train_plainly(small(), llama, tokens)[0]


@pytest.mark.parametrize("case", CASES)
def test_uneven_shares_give_the_losses_of_one_process(
    case: str, alone: list[float], llama: Path, tokens: Path, tmp_path: Path
) -> None:
    """To 1e-5, also when a rank has no row at all; the shares are told with the result."""
    settings, speeds, expected = CASES[case]
    trained = train_on_ranks(
        small(balance="measured", **settings),
        llama,
        tokens,
        tmp_path / "home",
        instead={"speeds.gemm_flops_per_s": ForcedSpeeds(speeds)},
    )
    assert trained.losses == pytest.approx(alone, abs=AGREE)
    assert [trained.outcome.figures[f"data_rank_{rank}_sequences"] for rank in range(2)] == expected


def test_speeds_are_measured_and_told(alone: list[float], llama: Path, tokens: Path, tmp_path: Path) -> None:
    """In the log, in the first event (for MLflow) and with the result; whatever they are, the losses are the same."""
    trained = train_on_ranks(small(balance="measured", nodes=2), llama, tokens, tmp_path / "home")
    told = {name: value for name, value in trained.outcome.figures.items() if name.startswith("data_rank_")}
    assert trained.losses == pytest.approx(alone, abs=AGREE)
    assert sum(told[f"data_rank_{rank}_sequences"] for rank in range(2)) == BATCH
    assert all(told[f"data_rank_{rank}_gflops"] > 0.01 for rank in range(2))
    assert trained.events[0] == {"step": 0, **told}
    assert f"balance measured: data rank 0: {told['data_rank_0_gflops']:g} GFLOP/s" in trained.log
