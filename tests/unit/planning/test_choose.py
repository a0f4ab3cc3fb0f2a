"""Which parallelism is chosen, and what is said of the others."""

import re
from typing import Any

import pytest
from planned import hardware, shape, work

from pipeline.contracts.finetune import Finetune, Parallelism
from pipeline.planning.choose import FILLED, choose, refusal, remedies, spreads
from pipeline.planning.forecasts import forecast
from pipeline.planning.shapes import ModelShape

AUTO: dict[str, Any] = {"parallelism": "auto"}
SEVEN_B: dict[str, Any] = {
    "hidden_size": 4096, "intermediate_size": 11008, "num_layers": 32, "num_heads": 32, "num_kv_heads": 32,
    "head_size": 128, "vocab_size": 32000,
}  # fmt: skip


def large() -> ModelShape:
    """Llama 2 7B."""
    return shape(**SEVEN_B)


def test_every_product_of_degrees_that_divides_the_ranks_is_considered() -> None:
    """Four ranks: ten products, with four stages of ZeRO each."""
    found = list(spreads(4))
    assert len(found) == 10 * 4
    assert all(4 % parallelism.model_ranks == 0 for parallelism in found)
    assert Parallelism(zero=2, tensor=2, sequence=2) in found


def test_a_small_model_is_spread_as_simply_as_can_be() -> None:
    """No slices, no stages, no parts."""
    choice = choose(work(nodes=2, batch_size=64, tokens=2048, **AUTO), hardware(nodes=2, ranks_per_node=1))
    assert choice.chosen is not None
    assert choice.chosen.parallelism.model_ranks == 1
    assert choice.candidates[0].reason == "the simplest of the fastest that fit"


def test_what_does_not_fit_loses_however_fast() -> None:
    """7 B parameters take 16 × 6.7 = 108 GB of states: without ZeRO that fits no accelerator of 80 GB."""
    many = work(large(), tokens=512, nodes=2, procs_per_node=8, batch_size=16, **AUTO)
    choice = choose(many, hardware(nodes=2))
    verdicts = {
        (found.parallelism.zero, found.parallelism.model_ranks): found for found in choice.candidates if found.forecast
    }
    assert verdicts[0, 1].verdict == "too large"
    assert "% of the memory" in verdicts[0, 1].reason
    assert choice.chosen is not None
    assert choice.chosen.filled <= FILLED


def test_parts_that_fewer_nodes_could_not_keep_even_are_not_chosen() -> None:
    """Six rows make no even micro-batches on two nodes of two ranks."""
    nodes: dict[str, Any] = {"nodes": 3, "min_nodes": 2, "procs_per_node": 2, "batch_size": 6}
    choice = choose(work(**nodes, **AUTO), hardware(nodes=3))
    found = [candidate for candidate in choice.candidates if candidate.parallelism.sequence == 2]
    assert {candidate.verdict for candidate in found} == {"does not work"}
    assert any("in 4 micro-batches" in candidate.reason for candidate in found)


def test_the_choice_is_the_fastest_of_those_that_fit() -> None:
    """Within what counts as equally fast."""
    choice = choose(work(large(), tokens=512, nodes=2, procs_per_node=8, batch_size=16, **AUTO), hardware(nodes=2))
    fits = ("chosen", "not simpler", "slower")
    fitting = [c.forecast.time.total_s for c in choice.candidates if c.forecast and c.verdict in fits]
    assert choice.chosen is not None
    assert choice.chosen.time.total_s <= min(fitting) * 1.1


@pytest.mark.parametrize(
    ("parallelism", "said"),
    [
        ({"tensor": 2, "pipeline": 2}, "the layers of a pipeline are not sliced"),
        ({"tensor": 4}, "tensor (4) must divide the model's key-value heads (2)"),
        ({"pipeline": 8}, "pipeline (8) must not exceed the model's layers (4)"),
        ({"sequence": 8}, "sequence (8) must divide the model's attention heads (4)"),
        ({"pipeline": 2, "zero": 3}, "pipeline with zero 3 does not work"),
        ({"tensor": 2}, ""),
        ({"sequence": 4, "zero": 3}, ""),
    ],
)
def test_what_recipe_or_model_do_not_allow_is_refused_by_reason(parallelism: dict[str, int], said: str) -> None:
    """In the contract's own words where it has some."""
    settings = Finetune(nodes=8, batch_size=32)
    found = refusal(shape(), settings, Parallelism(**parallelism))
    assert said in found
    assert bool(said) == bool(found)


def test_a_kind_without_stages_has_no_pipeline() -> None:
    """Mistral's attention slides."""
    mistral = shape(kind="mistral")
    assert "pipeline is for llama, qwen2, qwen3" in refusal(mistral, Finetune(nodes=2), Parallelism(pipeline=2))


def test_a_model_of_sliding_windows_has_no_pipeline_either() -> None:
    """So `auto` does not choose what the training would refuse."""
    found = refusal(shape(kind="qwen2", has_windows=True), Finetune(nodes=2), Parallelism(pipeline=2))
    assert "layers with sliding-window attention" in found


def test_what_would_be_enough_is_enough() -> None:
    """Each remedy that is named, tried."""
    tight = work(large(), tokens=4096, nodes=2, procs_per_node=8, batch_size=256, gradient_accumulation=4, **AUTO)
    machine = hardware(nodes=2)
    assert choose(tight, machine).chosen is None
    found = remedies(tight, machine)
    assert "finetune.activation_checkpointing: true" in found
    helped = work(large(), tokens=4096, nodes=2, procs_per_node=8, batch_size=256, gradient_accumulation=4,
                  activation_checkpointing=True, **AUTO)  # fmt: skip
    assert choose(helped, machine).chosen is not None


def test_more_nodes_are_enough_only_if_fewer_are_never_left() -> None:
    """A rank of the fewest nodes must fit, too."""
    settings = {"nodes": 2, "procs_per_node": 1, "batch_size": 16, "parallelism": {"zero": 3}, "min_nodes": 1}
    tight = work(large(), tokens=512, precision="fp32", **settings)
    (found,) = [text for text in remedies(tight, hardware(nodes=2, memory_gb=60)) if "nodes" in text]
    assert re.fullmatch(r"finetune\.nodes: \d+ with min_nodes: \d+", found)


def test_changes_that_help_together_alone_are_named_together() -> None:
    """On one small accelerator nothing is enough by itself."""
    tight = work(large(), tokens=1024, batch_size=8, precision="fp32", **AUTO)
    found = remedies(tight, hardware(memory_gb=24, ranks_per_node=1))
    assert len(found) == 1
    assert " and " in found[0]


def test_a_choice_leaves_a_tenth_of_the_memory() -> None:
    """A forecast may be wrong."""
    one = work(batch_size=1, parallelism={"zero": 0})
    needed_gb = forecast(one, hardware()).memory.device / 1e9
    exact = hardware(memory_gb=needed_gb * 1.05)
    assert not forecast(one, exact).excess
    assert {found.verdict for found in choose(one, exact).candidates if found.forecast} <= {"tight", "too large"}
