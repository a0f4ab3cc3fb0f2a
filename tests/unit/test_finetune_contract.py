"""Which trainings a recipe may ask for, and what it says of the others."""

from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.contracts.finetune import Finetune, Parallelism

FOUR = {"nodes": 4, "batch_size": 32}
DISTILL = {"method": "distill", "distill": {"teacher": "models:/large@champion"}}

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "tensor and pipeline": (
        {**FOUR, "parallelism": {"tensor": 2, "pipeline": 2}},
        "tensor 2 with pipeline 2 does not work: the layers of a pipeline are not sliced; nearest that works: tensor 4",
    ),
    "tensor and sequence": ({**FOUR, "parallelism": {"tensor": 2, "sequence": 2}}, "nearest that works: sequence 4"),
    "pipeline and sequence": ({**FOUR, "parallelism": {"pipeline": 2, "sequence": 2}}, "a stage would need the whole"),
    "a pipeline without ZeRO": ({**FOUR, "parallelism": {"pipeline": 2, "zero": 0}}, "works: pipeline with zero 1"),
    "a pipeline with ZeRO-2": ({**FOUR, "parallelism": {"pipeline": 2, "zero": 2}}, "works: pipeline with zero 1"),
    "a pipeline with ZeRO-3": (
        {**FOUR, "parallelism": {"pipeline": 2, "zero": 3}},
        "pipeline with zero 3 does not work: the gradients of a stage's micro-batches must stay whole",
    ),
    "LoRA over sliced layers": (
        {**FOUR, "method": "lora", "parallelism": {"tensor": 2}},
        "tensor with method lora does not work",
    ),
    "DPO in a pipeline": ({**FOUR, "method": "dpo", "parallelism": {"pipeline": 2}}, "pipeline with method dpo"),
    "LoRA in a pipeline": (
        {**FOUR, "method": "lora", "parallelism": {"pipeline": 2}},
        "pipeline with method lora does not work: the stages of a pipeline pass one model's activations on",
    ),
    "distillation in a pipeline": (
        {**FOUR, **DISTILL, "parallelism": {"pipeline": 2}},
        "nearest that works: method full, or zero 3 instead of the pipeline",
    ),
    "distillation of parts": (
        {**FOUR, **DISTILL, "parallelism": {"sequence": 2}},
        "sequence with method distill does not work: its loss compares whole answers or two models",
    ),
    "DPO of parts": (
        {**FOUR, "method": "dpo", "parallelism": {"sequence": 2}},
        "nearest that works: zero 3 instead of sequence",
    ),
    "packed pairs": (
        {"method": "dpo", "batching": "packing"},
        "batching packing with method dpo does not work: each answer needs a likelihood of its own",
    ),
    "pairs with a weight for prompts": (
        {"method": "dpo", "prompt_loss_weight": 0.5},
        "prompt_loss_weight 0.5 with method dpo does not work",
    ),
    "an optimizer elsewhere without ZeRO": (
        {"parallelism": {"zero": 0}, "offload": {"optimizer": True}},
        "offload.optimizer with zero 0 does not work: every rank uses the whole optimizer state at once",
    ),
    "packed rows in parts": (
        {**FOUR, "batching": "packing", "parallelism": {"sequence": 2}},
        "batching length_grouped",
    ),
    "uneven shares of parts": (
        {**FOUR, "balance": "measured", "parallelism": {"sequence": 2}},
        "sequence with balance measured does not work: its attention is laid out for one number of sequences",
    ),
    "parameters elsewhere without ZeRO-3": ({"offload": {"parameters": True}}, "nearest that works: zero 3"),
    "ranks that do not divide": (
        {"nodes": 3, "batch_size": 33, "parallelism": {"tensor": 2}},
        "nodes (3) × procs_per_node (1) = 3 ranks must be divisible by tensor (2)",
    ),
    "a batch that does not divide": (
        {"nodes": 2, "batch_size": 31},
        "batch_size (31) must be divisible by nodes (2) × procs_per_node (1) ÷ ranks that share rows (1)",
    ),
    "no teacher": ({"method": "distill"}, "name the teacher"),
    "settings of another method": ({"lora": {}}, "`lora` is given, but method is full"),
    "parts that fewer nodes could not keep even": (
        {"nodes": 3, "min_nodes": 2, "procs_per_node": 2, "batch_size": 6, "parallelism": {"sequence": 2}},
        "but 2 nodes would take batch_size (6) in 4 micro-batches: make it divisible by 4",
    ),
    "a parallelism that there is not": (
        {"parallelism": "foo"},
        "there is no parallelism 'foo': say `parallelism: auto`, or give a number to any of zero, tensor, pipeline,",
    ),
    "a kind of parallelism that there is not": ({"parallelism": {"foo": 2}}, "parallelism.foo"),
    "more nodes at least than at most": ({"nodes": 2, "min_nodes": 3}, "min_nodes (3) must not exceed nodes (2)"),
    "a choice beside auto": ({"parallelism": {"auto": True, "tensor": 2}}, "leave those out"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_work_is_refused_by_name_with_the_nearest_that_does(case: str) -> None:
    """Before anything is queued."""
    settings, said = REFUSED[case]
    with pytest.raises(ValidationError) as caught:
        Finetune.model_validate(settings)
    assert said in str(caught.value)


def test_parts_that_stay_even_may_have_fewer_nodes() -> None:
    """Twelve rows make even micro-batches on two nodes as on three."""
    settings = Finetune.model_validate(
        {"nodes": 3, "min_nodes": 2, "procs_per_node": 2, "batch_size": 12, "parallelism": {"sequence": 2}}
    )

    assert [settings.on_nodes(nodes).gradient_accumulation for nodes in (2, 3)] == [2, 1]


def test_auto_is_one_word_in_a_recipe() -> None:
    """And checked only when the planner has chosen."""
    settings = Finetune.model_validate({"parallelism": "auto", "nodes": 3, "batch_size": 32})

    assert settings.parallelism == Parallelism(auto=True)
    assert Finetune.model_validate_json(settings.model_dump_json()) == settings
