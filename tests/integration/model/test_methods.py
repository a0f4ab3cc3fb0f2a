"""LoRA, distillation and preference pairs on several ranks learn what one process learns with nothing but torch."""

from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import (
    VOCABULARY,
    logits_of_folder,
    make_plan,
    small,
    train_on_ranks,
    train_plainly,
    write_model,
    write_tokens,
)

from pipeline.contracts.finetune import Distill, Lora
from pipeline.errors import SpecError
from pipeline.training import adapters
from pipeline.training.loss import WeightedLoss
from pipeline.training.objectives import DistillLoss

pytestmark = pytest.mark.integration

AGREE = 1e-5
SAME_LOGITS = 5e-5
"""In fp32, see test_parallelism; the Llama is tied here."""
LORA = {"rank": 4, "alpha": 8.0}


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokens(tmp_path_factory.mktemp("data") / "tokens")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("llama") / "model", tied=True)


def some_ids() -> torch.Tensor:
    return torch.randint(1, VOCABULARY, (4, 16), generator=torch.Generator().manual_seed(3))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=some_ids()).logits
    return found


def with_adapters(model: Any) -> WeightedLoss:
    return WeightedLoss(adapters.add(model, Lora.model_validate(LORA), seed=0))


@pytest.mark.parametrize(
    "spread",
    [
        {"zero": 1},
        {"zero": 3},
        {"sequence": 2},
        *(
            pytest.param(rarer, marks=pytest.mark.drill)
            for rarer in ({"zero": 0}, {"zero": 2}, {"sequence": 2, "zero": 0}, {"sequence": 2, "zero": 3})
        ),
    ],
    ids=str,
)
def test_lora_learns_what_one_process_learns_and_merges_it(
    spread: dict[str, int], llama: Path, tokens: Path, tmp_path: Path
) -> None:
    """The merged model, loaded by transformers, gives the logits of base model and adapter together."""
    settings = small(method="lora", lora=LORA, parallelism=spread, learning_rate=0.005, nodes=2)
    losses, plain = train_plainly(small(learning_rate=0.005), llama, tokens, objective=with_adapters)
    trained = train_on_ranks(settings, llama, tokens, tmp_path / "home")
    assert trained.losses == pytest.approx(losses, abs=AGREE)
    assert losses[-1] < losses[0] - 0.01
    torch.testing.assert_close(trained.logits(some_ids()), logits(plain.model), rtol=0, atol=SAME_LOGITS)


def test_an_adapter_is_kept_beside_its_base_model_in_pefts_form(llama: Path, tokens: Path, tmp_path: Path) -> None:
    """The base model's weights are as they were, and no path of this machine is in the adapter's files."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    settings = small(method="lora", lora={**LORA, "output": "adapter", "targets": ["q_proj", "down_proj"]}, nodes=2)
    out = train_on_ranks(settings, llama, tokens, tmp_path / "home").folder / "out"
    base = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    torch.testing.assert_close(logits(base), logits_of_folder(llama, some_ids()))
    adapted = logits(PeftModel.from_pretrained(base, out / "adapter"))
    assert float((adapted - logits_of_folder(llama, some_ids())).abs().max()) > 0.01
    assert str(tmp_path) not in (out / "adapter" / "adapter_config.json").read_text()


@pytest.mark.parametrize(
    "spread",
    [
        {"zero": 1},
        {"zero": 3},
        {"tensor": 2},
        *(
            pytest.param(rarer, marks=pytest.mark.drill)
            for rarer in ({"zero": 0}, {"zero": 2}, {"tensor": 2, "zero": 3})
        ),
    ],
    ids=str,
)
def test_distillation_learns_what_one_process_learns(
    spread: dict[str, int], llama: Path, tokens: Path, tmp_path: Path
) -> None:
    """Also when teacher and student are spread over the ranks."""
    from transformers import AutoModelForCausalLM

    teacher_path = write_model(tmp_path / "teacher", "Qwen2", layers=2, seed=5)
    distill = Distill(teacher="given", temperature=2.0, kl_weight=0.7)
    teacher = AutoModelForCausalLM.from_pretrained(teacher_path, dtype=torch.float32).eval()
    losses, plain = train_plainly(small(), llama, tokens, objective=lambda model: DistillLoss(model, teacher, distill))
    settings = small(method="distill", distill=distill.model_dump(), parallelism=spread, nodes=2)
    trained = train_on_ranks(settings, llama, tokens, tmp_path / "home", teacher_path=teacher_path)
    assert trained.losses == pytest.approx(losses, abs=AGREE)
    torch.testing.assert_close(trained.logits(some_ids()), logits(plain.model), rtol=0, atol=SAME_LOGITS)


def test_adapters_for_layers_that_are_not_there_are_refused_with_those_that_are(llama: Path, tmp_path: Path) -> None:
    """By the names that the base model has."""
    from pipeline.training.worker import load_model

    model = load_model(make_plan(small(), llama, tmp_path, tmp_path))
    with pytest.raises(SpecError, match="its linear layers are down_proj, gate_proj, k_proj, lm_head, o_proj"):
        adapters.add(model, Lora(targets=("query",)), seed=0)
