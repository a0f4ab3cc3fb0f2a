"""Memory of a rank, held to figures of the papers and to figures worked out by hand."""

from dataclasses import replace

import pytest
from planned import shape, work

from pipeline.planning import activations
from pipeline.planning.amounts import MMAP_THRESHOLD, Amount
from pipeline.planning.memory import RankMemory, model_states, rank_memory
from pipeline.planning.moments import Moment
from pipeline.planning.workload import partition

GB = 10**9


def moment(memory: RankMemory, name: str) -> Moment:
    return next(found for found in memory.moments if found.name == name)


@pytest.mark.parametrize(("zero", "gb"), [(0, 120), (1, 31.4), (2, 16.6), (3, 1.9)])
def test_model_states_are_those_of_the_zero_paper(zero: int, gb: float) -> None:
    """Rajbhandari et al. 2020, figure 1: 7.5 billion parameters on 64 ranks, K = 12."""
    states = model_states(7.5e9, precision="fp16", zero=zero, ranks=64)
    assert states.total / GB == pytest.approx(gb, abs=0.05)


def test_model_states_of_the_papers_table() -> None:
    """Rajbhandari et al. 2020, table 1: 128 billion parameters on 1024 ranks: 513 GB with stage 1, and
    2 GB with stage 3."""
    assert model_states(128e9, precision="fp16", zero=1, ranks=1024).total / GB == pytest.approx(513.5, abs=0.1)
    assert model_states(128e9, precision="fp16", zero=3, ranks=1024).total / GB == pytest.approx(2.0, abs=0.01)


def test_fp32_has_no_second_copy_without_zero() -> None:
    """4 + 4 + 8 bytes a parameter; with ZeRO-1 on two ranks 4 + 4 + 12/2."""
    assert model_states(1000, precision="fp32", zero=0, ranks=2).total == 16_000
    assert model_states(1000, precision="fp32", zero=1, ranks=2).total == 14_000


def test_frozen_parameters_have_neither_gradients_nor_optimizer_state() -> None:
    """LoRA's saving: 2 bytes each in bf16."""
    assert model_states(10, frozen=1000, precision="bf16", zero=1, ranks=1).total == 16 * 10 + 2 * 1000


def test_a_layers_activations_in_bf16_by_hand() -> None:
    """For a token: two norms keep 4 × 64 in fp32 and 2 × 64, two inputs of maps 2 × 64 each; queries and the result
    2 × 64 each, keys and values 2 × 32 each, four log-sums; and 4 × 96 values of the MLP in 2 bytes."""
    norms, inputs = 2 * (4 * 64 + 2 * 64), 2 * (2 * 64)
    attention = 2 * (64 + 64) + 2 * (32 + 32) + 4 * 4
    assert activations.layer_bytes(work()) == norms + inputs + attention + 2 * 4 * 96


def test_tensor_parallelism_divides_attention_and_mlp_alone() -> None:
    """Korthikanti et al. 2022, equation 2: the part outside of them stays whole, 24/t of sbh is divided."""
    whole = activations.layer_bytes(work())
    halved = activations.layer_bytes(work(nodes=2, parallelism={"tensor": 2}))
    inside = 2 * (64 + 64) + 2 * (32 + 32) + 4 * 4 + 2 * 4 * 96
    assert halved == whole - inside / 2


def test_dropout_on_cores_keeps_matrices_of_scores() -> None:
    """Korthikanti et al. 2022, section 4.1: 5as²b bytes without a fused kernel; on cores the mask is a value, not a
    byte, and the matrices of a head and token are three."""
    plain = activations.attention_bytes(work(accelerated=False))
    dropped = activations.attention_bytes(work(shape(attention_dropout=0.1), accelerated=False))
    assert dropped - plain == 3 * 2 * 4 * 32
    assert activations.attention_bytes(work(shape(attention_dropout=0.1))) == plain


def test_checkpointed_activations_are_one_input_a_layer() -> None:
    """Chen et al. 2016; the last norm is not checkpointed."""
    checkpointed = work(activation_checkpointing=True)
    kept = activations.kept(checkpointed, checkpointed.stages[0])
    assert kept.total == 32 * (4 * 2 * 64 + (4 + 2 * 2) * 64)


def test_logits_count_three_times_in_fp32() -> None:
    """1000 words, 32 tokens."""
    whole = work()
    assert activations.logits(whole, whole.stages[0]).total == 3 * 4 * 1000 * 32


def test_preferences_have_two_sequences_a_row() -> None:
    """A chosen and a rejected answer."""
    assert work(method="dpo").micro_batch_tokens == 2 * 32


def test_an_adapter_has_rank_times_inputs_and_outputs() -> None:
    """Hu et al. 2021, table 4: 37.7 M of GPT-3's parameters, r = 8 for the queries' and values' maps of 96 layers
    that are 12288 wide."""
    gpt_3 = shape(hidden_size=12288, num_layers=96, num_heads=96, num_kv_heads=96, head_size=128)
    adapted = work(gpt_3, method="lora", lora={"rank": 8, "targets": ["q_proj", "v_proj"]})
    assert adapted.trained_parameters == 37_748_736


def test_a_training_of_adapters_takes_less_than_one_of_all() -> None:
    """The frozen model stays; gradients and optimizer state go."""
    model = shape(hidden_size=1024, intermediate_size=4096, num_heads=8, head_size=128, num_layers=8)
    full, adapters = (rank_memory(work(model, method=method, parallelism={"zero": 1})) for method in ("full", "lora"))
    held = work(model).held(work(model).stages[0]).trained
    assert adapters.rise < full.rise - 12 * held


def test_the_first_stage_keeps_as_many_micro_batches_as_there_are_stages() -> None:
    """Narayanan et al. 2021, section 2.2.1: with one forward and one backward pass in turn, at most p of them."""
    piped = work(nodes=4, batch_size=8, gradient_accumulation=8, parallelism={"pipeline": 4})
    assert [stage.in_flight for stage in piped.stages] == [4, 3, 2, 1]
    assert sum(stage.num_layers for stage in piped.stages) == 4


def test_a_pipeline_is_cut_where_its_heaviest_part_is_lightest() -> None:
    """Embedding, four layers, a norm and an output layer."""
    assert partition([10, 3, 3, 3, 3, 0, 10], 3) == [(0, 1), (1, 6), (6, 7)]
    assert len(partition([1, 1], 2)) == 2


def test_offloaded_state_is_in_the_machines_memory() -> None:
    """12 bytes a parameter leave the accelerator; they and a gradient in both precisions come to the machine."""
    model = shape(hidden_size=1024, intermediate_size=4096, num_heads=8, head_size=128, num_layers=8)
    held = work(model).held(work(model).stages[0]).trained
    here, there = (
        rank_memory(work(model, parallelism={"zero": 1}, offload={"optimizer": offload})) for offload in (False, True)
    )
    assert here.device - there.device >= 12 * held
    assert there.host - here.host == pytest.approx((12 + 4 + 2) * held)


def test_checkpoints_and_the_finished_model_take_the_machines_memory() -> None:
    """12 bytes a parameter that a rank owns, from the first save on, and the model in 16 bits at the end; as much of a
    checkpoint is read before the first step, by all ranks without ZeRO."""
    model = shape(hidden_size=1024, intermediate_size=4096, num_heads=8, head_size=128, num_layers=8)
    two = {"nodes": 2, "batch_size": 2, "precision": "fp32", "accelerated": False}
    whole = rank_memory(work(model, parallelism={"zero": 0}, **two))
    moments = {found.name: found.copies.total for found in whole.moments}
    states = 12 * model.parameters
    assert moments["checkpoint read"] == pytest.approx(states)
    assert moments["backward begins"] == moments["model saved"] == pytest.approx(states / 2)
    spread = rank_memory(work(model, parallelism={"zero": 3}, **two))
    moments = {found.name: found.copies.total for found in spread.moments}
    assert moments["checkpoint read"] == moments["optimizer step"] == pytest.approx(states / 2)
    assert moments["model saved"] == pytest.approx(states / 2 + 4 * model.parameters)
    assert rank_memory(work(model)).host >= (12 + 2) * model.parameters
    unsaved = rank_memory(replace(work(model, accelerated=False), saves=False, resumes=False))
    assert all(found.copies.total == 0 for found in unsaved.moments)


def test_a_free_small_block_stays_with_the_process_and_a_large_one_does_not() -> None:
    """glibc's malloc on cores; an accelerator's allocator counts what is in use."""
    small, large = Amount.of((100, MMAP_THRESHOLD - 1)), Amount.of((100, MMAP_THRESHOLD))
    assert (small.small, large.small) == (100, 0)
    on_cores = rank_memory(work(accelerated=False, precision="fp32", parallelism={"zero": 0}))
    step, begins = moment(on_cores, "optimizer step"), moment(on_cores, "backward begins")
    assert on_cores.kept(step) >= begins.activations.total
    assert rank_memory(work()).kept(begins) == 0


@pytest.mark.parametrize(("spread", "share"), [({"zero": 3}, 1 / 4), ({"zero": 3, "tensor": 2}, 1), ({"zero": 1}, 1)])
def test_a_model_that_is_to_be_sliced_is_loaded_whole(spread: dict[str, int], share: float) -> None:
    """And one for ZeRO-3 alone in parts."""
    loaded, whole = (
        rank_memory(work(nodes=4, batch_size=4, accelerated=False, parallelism=parallelism)).moments[0]
        for parallelism in (spread, {"zero": 0})
    )
    assert loaded.name == "model loaded"
    assert loaded.alive == pytest.approx(share * whole.alive)


def test_zero_2_exchanges_before_the_backward_pass_ends() -> None:
    """With buckets smaller than the model, activations of the layers before are still there."""
    small_buckets = {"communication": {"bucket_mb": 0.1}}
    exchange = rank_memory(work(parallelism={"zero": 2}, nodes=2, batch_size=2, **small_buckets)).moments[-2]
    assert exchange.name == "gradients exchanged"
    assert exchange.activations.total > 0


def test_adapters_leave_two_holes_for_each_result() -> None:
    """For a token and layer in fp32: two norms' squares and unscaled results, 4 × 64 each; queries and keys before
    their rotation, and 3.5 times the queries within it; and twice each map's outputs, 4 layers of 32 tokens."""
    plain = work(precision="fp32", method="lora", lora={"targets": ["q_proj"]})
    everything = work(precision="fp32", method="lora")
    others = 2 * (2 * 4 * 64) + 4 * ((64 + 32) + 3.5 * 64)
    assert activations.passing(plain, plain.stages[0]).total == 4 * 32 * (others + 2 * 4 * 64)
    outputs = 64 + 32 + 32 + 64 + 96 + 96 + 64
    assert activations.passing(everything, everything.stages[0]).total == 4 * 32 * (others + 2 * 4 * outputs)


def test_malloc_never_holds_less_than_it_once_held() -> None:
    """On cores, the holes of the forward pass are there at its end, and stay."""
    adapters = rank_memory(work(accelerated=False, precision="fp32", method="lora", parallelism={"zero": 0}))
    begins, step = moment(adapters, "backward begins"), moment(adapters, "optimizer step")
    assert adapters.kept(begins) >= begins.holes > 0
    assert adapters.kept(step) >= begins.arena - step.arena


@pytest.mark.parametrize(("stored", "copied"), [("fp32", 0), ("bf16", 4), (None, 4)])
def test_a_teacher_in_its_files_own_type_is_not_copied(stored: str | None, copied: int) -> None:
    """Its pages are the file's: the rank needs them, and the rise that is measured leaves them out."""
    teacher = shape(hidden_size=1024, intermediate_size=4096, num_heads=8, head_size=128, stored=stored)
    distilled = work(accelerated=False, precision="fp32", method="distill", distill={"teacher": "t"})
    alone, taught = rank_memory(distilled), rank_memory(replace(distilled, teacher=teacher))
    kept, without = (moment(memory, "backward begins").parameters.total for memory in (taught, alone))
    assert kept - without == copied * teacher.parameters
    assert taught.host - alone.host == (4 - copied) * teacher.parameters


def test_16_bit_gradients_are_all_copied_to_be_added_up_on_cores() -> None:
    """Two ranks' partitions in fp32 beside their sum, where the exchange is in 16 bits."""
    model = shape(hidden_size=1024, intermediate_size=4096, num_heads=8, head_size=128, num_layers=8)
    two = {"nodes": 2, "batch_size": 2, "accelerated": False}
    full, half = (rank_memory(work(model, precision=precision, **two)) for precision in ("fp32", "bf16"))
    group = work(model).held(work(model).stages[0]).largest_group
    added, plain = (moment(memory, "gradients exchanged").work.total for memory in (half, full))
    assert added - plain == 4 * group


def test_gradients_are_laid_end_to_end_even_by_a_single_rank() -> None:
    """DeepSpeed's exchange without ZeRO copies them, whatever the number of ranks."""
    single = work(parallelism={"zero": 0}, precision="fp32")
    exchange = moment(rank_memory(single), "gradients exchanged")
    assert exchange.buffers.total == 4 * single.held(single.stages[0]).trained
