"""The plan of a recipe: what it runs on, whether it fits, and what is said if not."""

import json
from typing import Any

import pytest

from pipeline.contracts.cluster import Cluster
from pipeline.contracts.finetune import Finetune, Parallelism
from pipeline.contracts.recipe import Recipe
from pipeline.errors import SpecError
from pipeline.planning import report
from pipeline.planning.forecasts import forecast
from pipeline.planning.hardware import machine_memory_bytes, of_recipe, parse_cluster
from pipeline.planning.plans import Plan, plan_training
from pipeline.planning.shapes import from_init

LARGE = {"hidden_size": 2048, "intermediate_size": 8192, "num_layers": 16, "num_heads": 16, "num_kv_heads": 16}


def recipe(init: dict[str, Any] | None = None, memory_gb: float | None = 8, **finetune: Any) -> Recipe:
    """The generated data and a new model."""
    return Recipe.model_validate(
        {
            "name": "bank",
            "dataset": {"generate": {"kind": "support-intents"}},
            "base_model": {"init": init or {}},
            "finetune": finetune,
            "resources": {"finetune": {"memory_gb": memory_gb}},
        }
    )


def planned(asked: Recipe, cluster: Cluster | None = None) -> Plan:
    """On four cores."""
    assert asked.base_model.init is not None
    return plan_training(asked, from_init(asked.base_model.init), cluster=cluster, cores=4)


def test_auto_becomes_a_concrete_parallelism() -> None:
    """Which later steps see, and nothing else."""
    settings = planned(recipe(parallelism="auto", nodes=4)).settings
    assert not settings.parallelism.auto
    assert Finetune.model_validate(settings.model_dump()) == settings


def test_a_recipes_own_parallelism_stays() -> None:
    """A plan forecasts it."""
    asked = recipe(parallelism={"zero": 2})
    assert planned(asked).settings == asked.finetune


def test_a_training_that_does_not_fit_is_refused_with_the_figures() -> None:
    """What it needs, what it may take, who says so, and what would be enough."""
    with pytest.raises(SpecError) as caught:
        planned(recipe(LARGE)).check()
    said = str(caught.value)
    assert "finetune does not fit: a node needs" in said
    assert "may take 8 GB (resources.finetune.memory_gb)" in said
    assert "Enough would be: " in said
    assert "resources.finetune.memory_gb: " in said


def test_the_memory_that_is_said_to_be_enough_is_enough() -> None:
    """And a GB less is not."""
    plan = planned(recipe(LARGE))
    assert plan.expected is not None
    enough = plan.expected.node_bytes / 1e9 + 0.05
    assert not planned(recipe(LARGE, memory_gb=enough)).problem
    assert planned(recipe(LARGE, memory_gb=enough - 1)).problem


def test_nothing_that_fits_is_refused_with_what_needs_least() -> None:
    """With auto, too."""
    with pytest.raises(SpecError, match=r"the parallelism that needs least \(.*\) fills \d+% of the memory"):
        planned(recipe(LARGE, parallelism="auto", memory_gb=2)).check()


def test_without_a_limit_the_memory_is_the_machines() -> None:
    """Shared by the nodes, which are all on it."""
    machine = of_recipe(recipe(memory_gb=None))
    assert machine.memory.value == pytest.approx(machine_memory_bytes() / 1e9 / 2)
    assert "this machine's" in machine.memory.source
    assert "shared by 2 nodes" in machine.memory.source


def test_the_ranks_of_a_node_share_its_memory() -> None:
    """But each accelerator has its own."""
    assert of_recipe(recipe(nodes=1, procs_per_node=4)).rank_bytes == 2e9
    on_accelerators = of_recipe(recipe(nodes=1, procs_per_node=4), Cluster(accelerator="a100-80gb"))
    assert on_accelerators.rank_bytes == 80e9


def test_a_figure_that_nobody_gave_says_that_it_is_an_estimate() -> None:
    """And one that somebody gave, who."""
    estimated, given = of_recipe(recipe(), cores=4), of_recipe(recipe(), Cluster(tflops=2, memory_gb=32))
    assert estimated.tflops.source.startswith("an estimate: ")
    assert "64 GFLOP/s" in estimated.tflops.source
    assert given.memory.source == "given"
    assert "figure given" in given.tflops.source


def test_the_recipe_may_say_what_it_runs_on() -> None:
    """So that a release plans for accelerators."""
    asked = recipe()
    resources = asked.resources.model_copy(update={"cluster": Cluster(accelerator="h100-80gb")})
    machine = of_recipe(asked.model_copy(update={"resources": resources}))
    assert (machine.accelerated, machine.memory.value) == (True, 80)
    assert "data sheet of h100-80gb" in machine.tflops.source


def test_a_cluster_of_words_is_read() -> None:
    """Nodes and accelerators become ranks; the rest describes them."""
    settings, cluster = parse_cluster("nodes=4,gpus=8,memory_gb=80,tflops=312,bandwidth_gbps=200", Finetune())
    assert (settings.nodes, settings.procs_per_node) == (4, 8)
    assert cluster == Cluster(accelerator="other", memory_gb=80, tflops=312, bandwidth_gbps=200)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nodes", "--cluster nodes: expected NAME=VALUE"),
        ("cores=3", "once for each of nodes, gpus"),
        ("gpus=8,gpus=8", "once for each"),
        ("nodes=two", "--cluster nodes=two: expected a whole number from 1 on"),
        ("memory_gb=lots", "--cluster memory_gb=lots: "),
        ("memory_gb=-1", "greater than 0"),
        ("nodes=3", "batch_size (32) must be divisible by nodes (3)"),
    ],
)
def test_a_cluster_that_is_not_understood_is_refused(text: str, said: str) -> None:
    """With the word."""
    with pytest.raises(SpecError) as caught:
        parse_cluster(text, Finetune())
    assert said in str(caught.value)


@pytest.mark.parametrize("cluster", [Cluster(accelerator="h900"), Cluster(accelerator="other")])
def test_an_accelerator_whose_memory_nobody_knows_is_refused(cluster: Cluster) -> None:
    """Its memory is never guessed."""
    with pytest.raises(SpecError, match="give one of a10-24gb"):
        of_recipe(recipe(), cluster)


def test_layers_that_the_model_does_not_have_cannot_be_adapted() -> None:
    """Named as the recipe names them."""
    with pytest.raises(SpecError, match=r"finetune.lora.targets names c_attn; a llama has the linear layers q_proj"):
        planned(recipe(method="lora", lora={"targets": ["c_attn"]}))


def test_a_training_must_fit_on_as_few_nodes_as_it_may_come_to() -> None:
    """With ZeRO a rank holds more when others are gone; it is as fast as with all of them while they are there."""
    spread = {"nodes": 4, "parallelism": {"zero": 3}, "batch_size": 32}
    cases = [spread, {**spread, "min_nodes": 1}, {**spread, "nodes": 1, "gradient_accumulation": 4}]
    whole, shrinking, alone = (
        forecast(plan.work, plan.hardware) for plan in map(planned, (recipe(**c) for c in cases))
    )
    assert whole.memory.device < shrinking.memory.device == alone.memory.device
    assert whole.time.total_s == shrinking.time.total_s


def test_a_parallelism_that_the_model_does_not_allow_is_refused() -> None:
    """Four heads in eight slices."""
    with pytest.raises(
        SpecError, match=r"finetune.parallelism: tensor \(8\) must divide the model's attention heads \(4\)"
    ):
        planned(recipe(nodes=8, parallelism=Parallelism(tensor=8).model_dump()))


def test_a_plan_is_told_in_one_line_and_in_json() -> None:
    """The same figures."""
    plan = planned(recipe(parallelism="auto"))
    told = json.loads(json.dumps(report.as_json(plan)))
    assert told["fits"]
    assert "(chosen)" in report.summary(plan)
    assert f"{told['expected']['rank_bytes'] / 1e9:.2f} GB of 8.00 GB" in report.summary(plan)
    assert [candidate["verdict"] for candidate in told["candidates"]].count("chosen") == 1
    moments = {moment["name"] for moment in told["expected"]["moments"]}
    steps = {"backward begins", "gradients exchanged", "optimizer step"}
    assert moments == {"model loaded", "checkpoint read", *steps, "model saved"}
