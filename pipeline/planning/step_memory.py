"""What comes and goes on a rank in one optimizer step: activations, gradients, and the buffers of their exchange.

The buffers are what DeepSpeed 0.19 allocates for the settings of `pipeline.training.engine`, or, with ZeRO-1, what
`pipeline.training.flat` does.
"""

from pipeline.planning import activations
from pipeline.planning.amounts import NOTHING, Amount
from pipeline.planning.moments import Moment, end_to_end, one_by_one
from pipeline.planning.workload import Held, Stage, Workload

MAX_LIVE_PARAMETERS = 1_000_000_000
"""That ZeRO-3 keeps gathered (see `engine.MAX_LIVE_PARAMETERS`)."""
SUB_GROUP_PARAMETERS = 1_000_000_000
"""That ZeRO-3 updates at a time: DeepSpeed's `sub_group_size`."""
FLATTENED_AT_A_TIME = 500_000_000
"""Gradients that ZeRO-0 copies into one exchange: DeepSpeed's `elements_per_buffer`."""


def step_moments(work: Workload, stage: Stage) -> tuple[Moment, ...]:
    """What comes and goes in a step."""
    held = work.held(stage)
    return (_turn(work, stage, held), _exchange(work, stage, held), _step(work, held))


def _turn(work: Workload, stage: Stage, held: Held) -> Moment:
    """The end of the forward pass and the beginning of the backward pass: all activations, and the loss's tensors or
    the last layer's backward pass, whichever is more."""
    settings, zero = work.settings, work.settings.parallelism.zero
    waits = zero < 3 and (settings.gradient_accumulation > 1 or settings.parallelism.pipeline > 1)
    loss, layer = activations.logits(work, stage), activations.backward(work)
    kept = activations.kept(work, stage) * stage.in_flight
    if layer.total > loss.total:
        kept, loss = kept + layer, Amount(0.0, loss.small)
    if work.flat:
        gradients, others = _flat_gradients(work, held), {"buffers": _received(work, held)}
    else:
        gradients, others = _gradients(work, held) if waits else NOTHING, _gathered(work, held)
    holes = activations.passing(work, stage).small * stage.in_flight
    return Moment(name="backward begins", gradients=gradients, activations=kept, logits=loss, holes=holes, **others)


def _gathered(work: Workload, held: Held) -> dict[str, Amount]:
    """With ZeRO-3, parameters gathered from all ranks, those that are being fetched, and the bucket of gradients,
    which stays (Rajbhandari et al. 2020, section 5.3: what was gathered can be discarded once it is used; DeepSpeed
    does so above MAX_LIVE_PARAMETERS)."""
    if work.settings.parallelism.zero < 3:
        return {}
    value, whole = work.value_bytes, held.trained + held.frozen
    live = one_by_one(held, value) + Amount.of((value * held.frozen, value * work.shape.layer_linear / 7))
    fetched = min(whole, bucket_elements(work, held)) * value
    return {
        "parameters": live * min(1.0, MAX_LIVE_PARAMETERS / whole),
        "buffers": Amount.of((fetched, fetched)) + _bucket(work, held),
    }


def bucket_elements(work: Workload, held: Held) -> float:
    """Gradients of one exchange (see `engine.engine_settings`)."""
    return min(held.trained + held.frozen, work.settings.communication.bucket_mb * 1e6 / 4)


def _bucket(work: Workload, held: Held) -> Amount:
    size = work.exchange_bytes * bucket_elements(work, held)
    return Amount.of((size, size))


def _gradients(work: Workload, held: Held) -> Amount:
    """As they wait for the step: whole with stages 0 and 1, this rank's share from stage 2 on."""
    whole = one_by_one(held, work.value_bytes)
    if work.settings.parallelism.zero < 2:
        return whole
    return _share(work, held)


def _share(work: Workload, held: Held) -> Amount:
    """This rank's part of the gradients, in one tensor."""
    size = work.value_bytes * held.trained / work.sharing_ranks
    return Amount.of((size, size))


def _exchange(work: Workload, stage: Stage, held: Held) -> Moment:
    """The gradients' exchange: each bucket is copied once more to be sent, and of what comes back this rank's share is
    set aside."""
    zero, name = work.settings.parallelism.zero, "gradients exchanged"
    if work.flat:
        return _flat_exchange(work, held)
    whole, bucket, share = one_by_one(held, work.value_bytes), _bucket(work, held), _share(work, held)
    if zero == 0:  # DeepSpeed's allreduce_bucket lays them end to end, even where there is no one to send them to
        sent = work.exchange_bytes * min(held.trained, FLATTENED_AT_A_TIME)
        return Moment(name=name, gradients=whole, buffers=Amount.of((sent, sent)))
    elements = bucket_elements(work, held)
    left = 1 - min(1.0, elements / held.trained)
    """Of the gradients, outside of a full bucket: those in it live there."""
    if zero == 1:
        waiting = Amount(left * whole.total, whole.small)
        aside = share if left else NOTHING
        later = Amount(max(0.0, left * whole.total - bucket.total)) + aside + bucket * (2 if left else 1)
        now = waiting + bucket * 2
        buffers = bucket * 2 if now.total >= later.total else later + Amount(-waiting.total)
        return Moment(name=name, gradients=waiting, buffers=buffers)
    # From stage 2 on an exchange begins as soon as a bucket is full, with the activations of the layers before.
    gathered = _gathered(work, held)
    kept = activations.kept(work, stage) * (stage.in_flight * left)
    aside = share if zero == 3 or left or work.settings.gradient_accumulation > 1 else NOTHING
    gradients = Amount(aside.total + left * work.value_bytes * held.largest, whole.small)
    return Moment(
        name=name,
        parameters=gathered.get("parameters", NOTHING),
        gradients=gradients,
        activations=kept,
        buffers=gathered.get("buffers", bucket) + bucket,
    )


def _flat_gradients(work: Workload, held: Held) -> Amount:
    """With flat ZeRO-1: all of them end to end, and this rank's share of the sum, which both stay."""
    summed = end_to_end(held, 4.0 / work.sharing_ranks)
    separate = work.sharing_ranks > 1 or work.settings.precision != "fp32"
    return end_to_end(held, work.value_bytes) + (summed if separate else NOTHING)


def _received(work: Workload, held: Held) -> Amount:
    """With flat ZeRO-1: what the other ranks have sent, which stays, too: through gloo a share from each of them,
    through NCCL the sum."""
    if work.sharing_ranks == 1:
        return NOTHING
    return end_to_end(held, work.exchange_bytes / (work.sharing_ranks if work.accelerated else 1))


def _flat_exchange(work: Workload, held: Held) -> Moment:
    """A sum in the making beside the last one, or its squares for the norm, a group at a time. To add up 16-bit values
    in fp32 on cores, torch first makes an fp32 copy of all that was received."""
    block = 4.0 * held.largest_group / work.sharing_ranks
    sums = Amount.of((block, block))
    if work.exchange_bytes < 4 and work.sharing_ranks > 1 and not work.accelerated:
        sums += Amount.of((4.0 * held.largest_group, 4.0 * held.largest_group))
    converted = end_to_end(held, work.exchange_bytes) if work.exchange_bytes != work.value_bytes else NOTHING
    return Moment(
        name="gradients exchanged",
        gradients=_flat_gradients(work, held),
        buffers=_received(work, held) + converted,
        work=sums,
    )


def _step(work: Workload, held: Held) -> Moment:
    """The optimizer's step: torch's fused AdamW, which needs nothing beside states and gradients in fp32.

    Without ZeRO the gradients are the parameters' own; in 16 bits the parameters are copies of what is updated, and so
    are the gradients. DeepSpeed's stages lay this rank's share, which was set aside, end to end, a group at a time.
    """
    zero, name = work.settings.parallelism.zero, "optimizer step"
    if zero == 0:
        gradients = one_by_one(held, work.value_bytes)
        if work.settings.precision != "fp32":
            gradients += one_by_one(held, 4.0)
        return Moment(name=name, gradients=gradients)
    if work.flat:
        updated = end_to_end(held, work.value_bytes / work.sharing_ranks)
        return Moment(
            name=name,
            gradients=_flat_gradients(work, held),
            buffers=_received(work, held),
            work=updated if work.settings.precision != "fp32" else NOTHING,
        )
    group = held.largest_group / work.sharing_ranks
    if zero == 3:
        group = min(group, SUB_GROUP_PARAMETERS)
    if work.accelerated and work.settings.offload.optimizer:
        return Moment(name=name, buffers=_gathered(work, held).get("buffers", NOTHING))
    return Moment(
        name=name,
        gradients=_share(work, held),
        buffers=_bucket(work, held) if zero == 3 else NOTHING,
        work=Amount.of((4.0 * group, 4.0 * group)),
    )
