"""How the ranks take one optimizer step together: through DeepSpeed's engine, or through its pipeline of stages.

A loss is a sum over tokens divided by the weight of the whole step, so it does not matter how the step's rows lie on
ranks and micro-batches, nor whether the shares are equal.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn

from pipeline.contracts.finetune import Finetune
from pipeline.training import flat
from pipeline.training.clock import Clock
from pipeline.training.engine import make_engine
from pipeline.training.loss import Collator, MicroBatch, WeightedLoss, token_losses
from pipeline.training.place import Place
from pipeline.training.stages import layers_of


class Trainer(Protocol):
    """One rank's side of the training."""

    engine: Any
    """DeepSpeed's."""
    clock: Clock

    def step(self, batches: Iterable[MicroBatch], total_weight: float, rate: float) -> float:
        """Takes an optimizer step over this rank's micro-batches; every rank calls it.

        Args:
            total_weight: of all ranks' tokens in this step.
            rate: the learning rate.

        Returns:
            This rank's share of the loss: those of all ranks add up to it.
        """

    def gather(self) -> dict[str, Tensor] | None:
        """The model's state dict on the first rank, None elsewhere; every rank calls it."""


class EngineTrainer:
    """Data, tensor and sequence parallelism, with any stage of ZeRO."""

    def __init__(self, objective: WeightedLoss, settings: Finetune, place: Place) -> None:
        parallelism = settings.parallelism
        if settings.activation_checkpointing:
            objective.model.gradient_checkpointing_enable({"use_reentrant": False})
            if hasattr(objective.model, "enable_input_require_grads"):
                objective.model.enable_input_require_grads()
        mpu = _spread_sequences(objective.model, settings, place) if parallelism.sequence > 1 else None
        self.place = place
        self._adapters_only = settings.method == "lora"
        self.engine = make_engine(objective, settings, place, mpu=mpu)
        self.engine.train()
        self.clock = Clock(self.engine.device)
        self._flat = flat.FlatStep(self.engine, settings, self.clock) if flat.applies_to(settings) else None
        # The engine averages over data-parallel ranks and micro-batches; what is wanted is their sum. It adds up the
        # parts of a sequence, but with ZeRO-3 it averages over them too.
        self._scale = place.data_ranks * settings.gradient_accumulation
        if parallelism.zero == 3:
            self._scale *= parallelism.sequence

    def step(self, batches: Iterable[MicroBatch], total_weight: float, rate: float) -> float:
        engine, clock = self.engine, self.clock
        for group in engine.optimizer.param_groups:
            group["lr"] = rate
        if self._flat:
            self._flat.begin()
        losses = []
        for batch in batches:
            part = batch.part(self.place.part, self.place.parallelism.sequence).to(engine.device)
            clock.lap("data")
            loss = (engine.module if self._flat else engine)(part) / max(total_weight, 1e-9)
            clock.lap("forward")
            if self._flat:
                loss.backward()
                clock.lap("backward")
            else:
                engine.backward(loss * self._scale)
                clock.lap("backward")
                engine.step()
                clock.lap("optimizer")
            losses.append(loss.detach())
        if self._flat:
            self._flat.finish()
        return float(sum(losses)) if self.place.counts_its_loss else 0.0

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def likelihoods(self, collator: Collator, *, lines_at_once: int) -> NDArray[np.float32]:
        """Of every row's answer under the model as it is, in nats; every rank calls it.

        Args:
            lines_at_once: rows in a micro-batch.
        """
        engine, ranks = self.engine, self.place.data_ranks
        rows = np.arange(len(collator.tokens.lengths))
        found = torch.zeros(len(rows), dtype=torch.float64)
        batches = np.array_split(rows, -(-len(rows) // (lines_at_once * ranks)) * ranks)
        engine.eval()
        # Ranks with the same number of batches: with ZeRO-3 each forward pass is an exchange.
        for batch in batches[self.place.data_rank :: ranks]:
            lines = batch if len(batch) else rows[:1]
            values = engine(collator.collate([(int(row),) for row in lines]).to(engine.device))
            if len(batch) and self.place.counts_its_loss:
                found[batch] = values.double().cpu()
        engine.train()
        found = found.to(engine.device)
        distributed.all_reduce(found)
        likelihoods: NDArray[np.float32] = found.float().cpu().numpy()
        return likelihoods

    def gather(self) -> dict[str, Tensor] | None:
        parallelism, trained = self.place.parallelism, {"exclude_frozen_parameters": self._adapters_only}
        if parallelism.zero == 3:
            state = self.engine._zero3_consolidated_16bit_state_dict(**trained)
        elif parallelism.tensor > 1:
            state = self.engine._consolidated_16bit_state_dict()
        else:
            state = self.engine.module_state_dict(**trained)
        if self.place.rank != 0:
            return None
        return {name.removeprefix("model."): tensor for name, tensor in state.items()}


def _spread_sequences(model: nn.Module, settings: Finetune, place: Place) -> Any:
    """Makes the model's attention exchange parts of sequences for heads (DeepSpeed Ulysses)."""
    from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF

    return UlyssesSPAttentionHF.register_with_transformers(
        model_name_or_path=model,
        core_attn_implementation=model.config._attn_implementation,
        sequence_parallel_size=settings.parallelism.sequence,
        micro_batch_size=max(1, settings.batch_size // place.data_ranks // settings.gradient_accumulation),
        seq_length_is_variable=True,
    )


class PipelineTrainer:
    """Layers laid out as stages, with data parallelism beside them."""

    def __init__(self, model: Any, settings: Finetune, place: Place) -> None:
        from deepspeed import checkpointing
        from deepspeed.pipe import PipelineModule

        self._model = model
        self._packed = settings.batching == "packing"
        self.place = place
        self._scale = place.data_ranks * settings.gradient_accumulation
        self._total_weight = 1.0
        stages = PipelineModule(
            layers=layers_of(model),
            num_stages=settings.parallelism.pipeline,
            loss_fn=self._loss,
            partition_method="parameters",
            activation_checkpoint_interval=int(settings.activation_checkpointing),
            activation_checkpoint_func=checkpointing.non_reentrant_checkpoint,
            dynamic_shape=True,
        )
        self._own = {id(parameter) for parameter in stages.parameters()}
        for parameter in model.parameters():
            if id(parameter) not in self._own:
                parameter.data = torch.empty(0)
        self.engine = make_engine(stages, settings, place)
        self.clock = Clock(self.engine.device)

    def step(self, batches: Iterable[MicroBatch], total_weight: float, rate: float) -> float:
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        self._total_weight = total_weight
        loss = self.engine.train_batch(data_iter=self._feed(batches))
        self.clock.lap("pipeline")
        return float(loss) / self.place.world_size

    def gather(self) -> dict[str, Tensor] | None:
        """Stage by stage to the first rank, a tensor at a time."""
        state: dict[str, Tensor] = {}
        device = self.engine.device
        for name, parameter in self._model.named_parameters():
            owner = self._owner(parameter)
            described: list[Any] = [(parameter.shape, parameter.dtype)]
            distributed.broadcast_object_list(described, src=owner)
            shape, dtype = described[0]
            tensor = torch.empty(shape, dtype=dtype, device=device)
            if self.place.rank == owner:
                tensor.copy_(parameter.data)
            distributed.broadcast(tensor, src=owner)
            if self.place.rank == 0:
                state[name] = tensor.cpu()
        return state if self.place.rank == 0 else None

    def _owner(self, parameter: nn.Parameter) -> int:
        """The first rank that has `parameter`; every rank calls it."""
        ranks = self.place.world_size
        mine = self.place.rank if id(parameter) in self._own else ranks
        first = torch.tensor([mine], device=self.engine.device)
        distributed.all_reduce(first, op=distributed.ReduceOp.MIN)
        if int(first) == ranks:
            raise RuntimeError("a parameter belongs to no stage of the pipeline")
        return int(first)

    def _feed(self, batches: Iterable[MicroBatch]) -> Iterator[tuple[Any, Any]]:
        for batch in batches:
            inputs = (batch.ids, batch.positions, batch.documents) if self._packed else batch.ids
            yield inputs, (batch.targets, batch.weights)

    def _loss(self, logits: Tensor, labels: tuple[Tensor, Tensor]) -> Tensor:
        targets, weights = labels
        return (token_losses(logits, targets) * weights).sum() * (self._scale / max(self._total_weight, 1e-9))
