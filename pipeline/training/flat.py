"""One optimizer step of ZeRO-1 over the buffers that DeepSpeed has laid out, with few calls.

DeepSpeed owns the layout, the optimizer's state and the checkpoints. Its own step handles every gradient by itself, in
Python, and asks for each parameter group's norm apart, which for small models costs more than the computation
(docs/benchmarks.md). Here gradients are views into one flat buffer per group, each rank receives its partition of the
others' buffers, one number gives the norm, and the updated partitions go back to all.
"""

from typing import Any

import torch
from torch import Tensor, distributed

from pipeline.contracts.finetune import Finetune
from pipeline.training.clock import Clock

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def applies_to(settings: Finetune) -> bool:
    """Data parallelism with ZeRO-1 alone; DeepSpeed takes the steps of everything else."""
    parallelism, offload = settings.parallelism, settings.offload
    return (
        parallelism.zero == 1
        and parallelism.model_ranks == 1
        and settings.precision != "fp16"
        and not (offload.optimizer or offload.parameters or settings.communication.overlap)
    )


class FlatStep:
    """Takes optimizer steps for `engine`, whose gradient hooks it removes.

    Gradients of the ranks are added up, not averaged.
    """

    def __init__(self, engine: Any, settings: Finetune, clock: Clock) -> None:
        zero = engine.optimizer
        for hook in zero._grad_acc_hooks:
            hook.remove()
        zero._grad_acc_hooks.clear()
        self._engine = engine
        self._zero = zero
        self._clock = clock
        self._max_norm = settings.gradient_clipping
        dtype = settings.communication.dtype
        self._groups = [
            _Group(zero, index, DTYPES[dtype] if dtype else None) for index in range(len(zero.bit16_groups))
        ]

    def begin(self) -> None:
        """Empties the gradients; the backward passes that follow add to them."""
        for group in self._groups:
            group.empty()

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def finish(self) -> None:
        """Exchanges the gradients, clips them by their norm, updates the parameters; every rank calls it.

        `engine.get_global_grad_norm()` then gives the norm before clipping.
        """
        works = [group.start_reduce() for group in self._groups]
        gradients = [group.end_reduce(work) for group, work in zip(self._groups, works, strict=True)]
        squares = torch.stack([gradient.square().sum() for gradient in gradients]).sum()
        if self._groups[0].ranks > 1:
            distributed.all_reduce(squares, group=self._groups[0].process_group)
        norm = squares.sqrt()
        self._clock.lap("communication")
        scale = self._max_norm / (norm + 1e-6)
        torch._foreach_mul_(gradients, scale.clamp(max=1.0))
        self._zero.optimizer.step()
        self._clock.lap("optimizer")
        for work in [group.start_gather() for group in self._groups]:
            if work is not None:
                work.wait()
        self._clock.lap("communication")
        self._engine._global_grad_norm = norm
        self._engine.global_steps += 1
        self._engine.global_samples += self._engine.train_batch_size()
        self._engine.micro_steps += self._engine.gradient_accumulation_steps()


class _Group:
    """A parameter group: its flat parameters and gradients, and this rank's partition of both."""

    def __init__(self, zero: Any, index: int, dtype: torch.dtype | None) -> None:
        self.process_group = zero.real_dp_process_group[index]
        self.ranks = distributed.get_world_size(self.process_group)
        self._parameters: Tensor = zero.bit16_groups_flat[index]
        self._master: Tensor = zero.single_partition_of_fp32_groups[index]
        self._gradients = torch.zeros_like(self._parameters)
        self._dtype = dtype or self._gradients.dtype
        self._direct = self._parameters.device.type == "cpu"
        # gloo exchanges partitions in two thirds of the time that its all-reduce takes; NCCL adds up on the way.
        received = self._gradients.numel() if self._direct else self._master.numel()
        self._received = torch.empty(received if self.ranks > 1 else 0, dtype=self._dtype, device=self._master.device)
        offsets = zero.round_robin_bit16_offsets[index]
        self._views = [
            (parameter, self._gradients[offset : offset + parameter.numel()].view_as(parameter))
            for parameter, offset in zip(zero.round_robin_bit16_groups[index], offsets, strict=True)
        ]

    def empty(self) -> None:
        self._gradients.zero_()
        for parameter, view in self._views:
            parameter.grad = view

    def start_reduce(self) -> Any:
        """Sends each rank its partition of the gradients."""
        if self.ranks == 1:
            return None
        sent = self._gradients.to(self._dtype)
        if self._direct:
            return distributed.all_to_all_single(self._received, sent, group=self.process_group, async_op=True)
        return distributed.reduce_scatter_tensor(self._received, sent, group=self.process_group, async_op=True)

    def end_reduce(self, work: Any) -> Tensor:
        """This rank's partition of the summed gradients, which the optimizer is given."""
        if work is None:
            summed = self._gradients
        else:
            work.wait()
            summed = self._received
            if self._direct:
                summed = summed.view(self.ranks, -1).sum(dim=0, dtype=torch.float32)
        self._master.grad = summed.to(self._master.dtype)
        return self._master.grad

    def start_gather(self) -> Any:
        """Sends the updated partition to all ranks."""
        updated = self._master.detach()
        if self.ranks == 1:
            self._parameters.copy_(updated)
            return None
        updated = updated.to(self._parameters.dtype)
        return distributed.all_gather_into_tensor(self._parameters, updated, group=self.process_group, async_op=True)
