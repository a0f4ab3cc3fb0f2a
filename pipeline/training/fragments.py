"""The pieces of a training's state that one rank holds: of each trained parameter its weight in fp32, and Adam's
averages of it.

With ZeRO-0 a rank holds whole parameters, with ZeRO-1 and 2 a range of all parameters laid end to end, with ZeRO-3 a
range of each parameter. All are given as ranges of one flat parameter, so what was read with one stage on some number
of ranks can be written with another stage on another number.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.training.place import Place

WEIGHT = "weight"
AVERAGES = ("exp_avg", "exp_avg_sq")
KINDS = (WEIGHT, *AVERAGES)
SCALER_FIELDS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
"""Of DeepSpeed's loss scalers, as far as they have them."""


@dataclass(frozen=True)
class Fragment:
    """Elements `offset` to `offset + size` of a parameter, flattened."""

    name: str
    shape: tuple[int, ...]
    """Of the whole parameter; with tensor parallelism, of this rank's slice of it."""
    offset: int
    size: int
    tensors: dict[str, Tensor] = field(repr=False)
    """By kind; flat."""

    def write(self, values: Mapping[str, Tensor]) -> None:
        """Args: values: by kind, of `size` elements each."""
        for kind, tensor in self.tensors.items():
            tensor.copy_(values[kind])

    def share(self, part: int, parts: int) -> "Fragment":
        """One of `parts` about equal ranges of it."""
        begin, end = self.size * part // parts, self.size * (part + 1) // parts
        tensors = {kind: tensor[begin:end] for kind, tensor in self.tensors.items()}
        return Fragment(self.name, self.shape, self.offset + begin, end - begin, tensors)


@dataclass(frozen=True)
class _Partition(Fragment):
    """A range of a parameter under ZeRO-3, whose optimizer may keep its side elsewhere."""

    parameter: Any = None

    def write(self, values: Mapping[str, Tensor]) -> None:
        from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

        for kind in KINDS:
            # The last rank's range is padded to the size of the others.
            whole = torch.zeros(self.parameter.ds_tensor.ds_numel)
            whole[: self.size].copy_(values[kind])
            if kind == WEIGHT:
                safe_set_local_fp32_param(self.parameter, whole)
                self.parameter.ds_tensor.data.copy_(whole)
            else:
                safe_set_local_optimizer_state(self.parameter, whole, kind)


def shapes_of(engine: Any) -> dict[str, tuple[int, ...]]:
    """Of each trained parameter that this rank has a part of."""
    return {name: tuple(getattr(parameter, "ds_shape", parameter.shape)) for name, parameter in _trained(engine)}


def held_fragments(engine: Any) -> list[Fragment]:
    """All that this rank holds; several ranks may hold the same."""
    return list(_fragments(engine))


def owned_fragments(engine: Any, place: Place) -> list[Fragment]:
    """What this rank keeps for all: the ranks' fragments together make up every parameter once."""
    held = held_fragments(engine)
    if engine.zero_optimization():
        return held
    sequence = place.parallelism.sequence
    part, parts = place.data_rank * sequence + place.part, place.data_ranks * sequence
    return [share for share in (fragment.share(part, parts) for fragment in held) if share.size]


def _trained(engine: Any) -> Iterator[tuple[str, nn.Parameter]]:
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad:
            yield name, parameter


def _fragments(engine: Any) -> Iterator[Fragment]:
    stage, base = engine.zero_optimization_stage(), engine.basic_optimizer
    if stage == 3:
        yield from _partitions(engine)
    elif stage:
        for name, parameter in _trained(engine):
            mapping = parameter._hp_mapping
            if mapping is not None:
                group = base.param_groups[mapping.param_group_index]
                state, here = base.state[group["params"][0]], mapping.hp_fragment_address
                tensors = {kind: state[kind].narrow(0, here.start, here.numel) for kind in AVERAGES}
                tensors[WEIGHT] = mapping.hp_fragment.detach()
                shape, offset = tuple(parameter.shape), mapping.lp_fragment_address.start
                yield Fragment(name, shape, offset, here.numel, tensors)
    else:
        masters = _masters(engine)
        for name, parameter in _trained(engine):
            master = masters.get(id(parameter), parameter)
            tensors = {kind: base.state[master][kind].view(-1) for kind in AVERAGES}
            tensors[WEIGHT] = master.detach().view(-1)
            yield Fragment(name, tuple(parameter.shape), 0, parameter.numel(), tensors)


def _partitions(engine: Any) -> Iterator[Fragment]:
    """Those of ZeRO-3."""
    from deepspeed.utils import safe_get_local_fp32_param, safe_get_local_optimizer_state
    from torch import distributed

    for name, parameter in _trained(engine):
        length = parameter.ds_tensor.ds_numel
        offset = length * distributed.get_rank(parameter.ds_process_group)
        size = min(length, parameter.ds_numel - offset)
        if size > 0:
            tensors = {kind: safe_get_local_optimizer_state(parameter, kind)[:size] for kind in AVERAGES}
            tensors[WEIGHT] = safe_get_local_fp32_param(parameter).detach()[:size]
            yield _Partition(name, tuple(parameter.ds_shape), offset, size, tensors, parameter)


def _masters(engine: Any) -> dict[int, Tensor]:
    """With ZeRO-0 and a lower precision: the id of each parameter to its weight in fp32."""
    lower, masters = getattr(engine.optimizer, "fp16_groups", []), getattr(engine.optimizer, "fp32_groups", [])
    return {
        id(parameter): master
        for group, copies in zip(lower, masters, strict=True)
        for parameter, master in zip(group, copies, strict=True)
    }


def _optimized(engine: Any) -> list[Tensor]:
    """The tensors that torch's optimizer changes."""
    if engine.zero_optimization_stage() == 3:
        return list(engine.optimizer.fp32_partitioned_groups_flat)
    return [tensor for group in engine.basic_optimizer.param_groups for tensor in group["params"]]


def adam_step(engine: Any) -> int:
    """How many steps Adam has taken; those that overflowed in fp16 are left out."""
    return int(engine.basic_optimizer.state[_optimized(engine)[0]]["step"])


def begin_state(engine: Any, step: int) -> None:
    """Gives Adam averages of 0, for fragments to be written to, as if it had taken `step` steps."""
    is_fused = engine.basic_optimizer.defaults["fused"]
    for tensor in _optimized(engine):
        averages = {kind: torch.zeros_like(tensor, requires_grad=False) for kind in AVERAGES}
        # The fused kernel reads the count where the weights are; the others want it on the host.
        count = torch.full((), float(step), device=tensor.device if is_fused else "cpu")
        engine.basic_optimizer.state[tensor] = {"step": count, **averages}


@torch.no_grad()  # type: ignore[untyped-decorator]
def begin_writing(engine: Any) -> None:
    """To be called by every rank before it writes fragments."""
    if engine.zero_optimization_stage() == 3:
        engine.optimizer.checkpoint_event_prologue()


@torch.no_grad()  # type: ignore[untyped-decorator]
def end_writing(engine: Any) -> None:
    """Gives the written weights to the model, on all ranks; every rank calls it."""
    stage = engine.zero_optimization_stage()
    if stage == 3:
        engine.optimizer.checkpoint_event_epilogue()
    elif stage:
        engine.optimizer.update_lp_params()
    else:
        masters = _masters(engine)
        for _, parameter in _trained(engine):
            if id(parameter) in masters:
                parameter.copy_(masters[id(parameter)])


def loss_scale(engine: Any) -> dict[str, float]:
    """The state of fp16's loss scaler; empty in other precisions."""
    scaler = _scaler(engine)
    fields = {name: getattr(scaler, name, None) for name in SCALER_FIELDS}
    return {name: value for name, value in fields.items() if value is not None}


def set_loss_scale(engine: Any, state: Mapping[str, float]) -> None:
    for name, value in state.items():
        setattr(_scaler(engine), name, value)


def _scaler(engine: Any) -> Any:
    if not engine.fp16_enabled():
        return None
    return getattr(engine.optimizer, "loss_scale_config", None) or engine.optimizer.loss_scaler
