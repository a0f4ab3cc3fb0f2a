"""Bytes on the wire and seconds of a step, held to figures of the papers."""

import pytest
from planned import hardware, shape, work

from pipeline.planning.speed import head_flops, layer_flops, step_time, token_flops
from pipeline.planning.traffic import all_reduced, gathered, step_traffic


def test_a_ring_all_reduce_sends_the_least_there_is() -> None:
    """Patarasuk and Yuan 2009: 2(n - 1)/n of the data; 1.5 of it with four."""
    assert all_reduced(1000, 4) == 1500
    assert gathered(1000, 4) == 750
    assert all_reduced(1000, 1) == 0


@pytest.mark.parametrize(("zero", "times"), [(0, 2), (1, 2), (2, 3), (3, 3)])
def test_what_zero_sends(zero: int, times: int) -> None:
    """Rajbhandari et al. 2020, section 7: 2Ψ without and with stage 1, 3Ψ with stage 3; DeepSpeed's stage 2 adds up
    whole buckets and gathers parameters: 3Ψ."""
    many = work(nodes=64, batch_size=64, parallelism={"zero": zero})
    (traffic,) = step_traffic(many, many.stages[0])
    assert traffic.bytes == pytest.approx(times * 2 * many.shape.parameters * 63 / 64)


def test_slices_exchange_hidden_states_four_times_a_layer() -> None:
    """Shoeybi et al. 2019: two all-reduces forward, two backward; with two ranks each sends what there is."""
    sliced = work(nodes=2, parallelism={"tensor": 2, "zero": 1})
    (traffic,) = step_traffic(sliced, sliced.stages[0])
    assert (traffic.kind, traffic.bytes) == ("tensor", 4 * 4 * (2 * 32 * 64))


def test_parts_of_sequences_change_hands_four_times_forward_and_back() -> None:
    """Jacobs et al. 2023: queries, keys, values and the result; half of them leave with two ranks."""
    parted = work(nodes=2, parallelism={"sequence": 2, "zero": 1})
    traffic = {part.kind: part.bytes for part in step_traffic(parted, parted.stages[0])}
    assert traffic["sequence"] == 4 * 2 * (2 * 16 * (2 * 64 + 2 * 32)) / 2


def test_stages_hand_hidden_states_on_and_gradients_back() -> None:
    """A stage in the middle sends both for each micro-batch."""
    piped = work(nodes=4, batch_size=8, gradient_accumulation=8, parallelism={"pipeline": 4})
    traffic = {part.kind: part.bytes for part in step_traffic(piped, piped.stages[1])}
    assert traffic["pipeline"] == 8 * 2 * (2 * 32 * 64)


def test_arithmetic_of_a_token_is_that_of_the_palm_paper() -> None:
    """Chowdhery et al. 2022, appendix B: 6N + 12LHQT; N without the look-up of the embedding and the norms."""
    model = shape(hidden_size=4096, intermediate_size=11008, num_layers=32, num_heads=32, num_kv_heads=32,
                  head_size=128, vocab_size=32000)  # fmt: skip
    matrices = model.parameters - model.embedding - 65 * 4096
    assert token_flops(model, 2048) == 6 * matrices + 12 * 32 * 32 * 128 * 2048


def test_activation_checkpointing_adds_a_forward_pass_of_the_layers() -> None:
    """8N instead of 6N (Narayanan et al. 2021, section 5.1), but for the output layer."""
    model, machine = shape(), hardware()
    once, twice = (step_time(work(activation_checkpointing=again), machine) for again in (False, True))
    layers, head = 4 * layer_flops(model, 32), head_flops(model)
    assert twice.compute_s / once.compute_s == pytest.approx((4 * layers + 3 * head) / (3 * layers + 3 * head))


def test_a_pipeline_waits_for_p_minus_one_of_m() -> None:
    """Narayanan et al. 2021, section 2.2.1: four stages and eight micro-batches wait 3/8 of what they compute."""
    step = step_time(work(nodes=4, batch_size=8, gradient_accumulation=8, parallelism={"pipeline": 4}), hardware())
    assert step.bubble_s == pytest.approx(step.compute_s * 3 / 8)


def test_frozen_weights_need_no_gradient_of_their_own() -> None:
    """About two thirds of the arithmetic."""
    full, adapters = (step_time(work(method=method, lora=lora), hardware()).compute_s for method, lora in
                      (("full", None), ("lora", {"rank": 1})))  # fmt: skip
    assert 0.66 < adapters / full < 0.75


def test_an_exchange_takes_the_slowest_link_that_it_needs() -> None:
    """80 Gbit/s between two nodes: 10 GB/s; and 30 µs for the message."""
    spread = work(nodes=2, batch_size=2, parallelism={"zero": 0})
    near = step_time(spread, hardware(nodes=1, ranks_per_node=2))
    far = step_time(spread, hardware(nodes=2, ranks_per_node=1))
    assert far.exchange_s == pytest.approx(2 * spread.shape.parameters / 10e9 + 30e-6)
    assert near.exchange_s == pytest.approx(2 * spread.shape.parameters / 100e9 + 30e-6)


def test_an_exchange_that_overlaps_costs_what_the_backward_pass_does_not_hide() -> None:
    """Nothing here but on a slow network."""
    spread = work(nodes=2, batch_size=2, parallelism={"zero": 0}, communication={"overlap": True})
    (traffic,) = step_traffic(spread, spread.stages[0])
    assert traffic.overlaps
    hidden = step_time(spread, hardware(nodes=2, ranks_per_node=1))
    assert hidden.exchange_s == pytest.approx(
        max(0.0, 2 * spread.shape.parameters / 10e9 + 30e-6 - hidden.compute_s * 2 / 3)
    )
