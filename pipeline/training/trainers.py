"""How the ranks take one optimizer step together: through DeepSpeed's engine, or through its pipeline of stages.

A loss is a sum over tokens divided by the weight of the whole step, so it does not matter how the step's rows lie on
ranks and micro-batches, nor whether the shares are equal.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, distributed, nn

from pipeline.contracts.finetune import Finetune
from pipeline.errors import SpecError
from pipeline.training.engine import make_engine
from pipeline.training.loss import MicroBatch, WeightedLoss, token_losses
from pipeline.training.place import Place
from pipeline.training.stages import layers_of


class Trainer(Protocol):
    """One rank's side of the training."""

    engine: Any
    """DeepSpeed's."""

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
        self.engine = make_engine(objective, settings, place, mpu=mpu)
        self.engine.train()
        # The engine averages over data-parallel ranks and micro-batches; what is wanted is their sum. It adds up the
        # parts of a sequence, but with ZeRO-3 it averages over them too.
        self._scale = place.data_ranks * settings.gradient_accumulation
        if parallelism.zero == 3:
            self._scale *= parallelism.sequence

    def step(self, batches: Iterable[MicroBatch], total_weight: float, rate: float) -> float:
        engine = self.engine
        for group in engine.optimizer.param_groups:
            group["lr"] = rate
        share = 0.0
        for batch in batches:
            part = batch.part(self.place.part, self.place.parallelism.sequence)
            loss = engine(part.to(engine.device)) / max(total_weight, 1e-9)
            engine.backward(loss * self._scale)
            engine.step()
            share += float(loss.detach())
        return share if self.place.counts_its_loss else 0.0

    def gather(self) -> dict[str, Tensor] | None:
        parallelism = self.place.parallelism
        if parallelism.zero == 3:
            state = self.engine._zero3_consolidated_16bit_state_dict()
        elif parallelism.tensor > 1:
            state = self.engine._consolidated_16bit_state_dict()
        else:
            state = self.engine.module.state_dict() if self.place.rank == 0 else None
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

    def step(self, batches: Iterable[MicroBatch], total_weight: float, rate: float) -> float:
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        self._total_weight = total_weight
        loss = self.engine.train_batch(data_iter=self._feed(batches))
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


def check_shape(config: Any, settings: Finetune) -> None:
    """Refuses a model that cannot be spread as asked.

    Args:
        config: the model's, of transformers.

    Raises:
        SpecError: heads or layers do not divide, or a kind of model that has no stages.
    """
    parallelism = settings.parallelism
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    for kind in ("tensor", "sequence"):
        degree = getattr(parallelism, kind)
        if heads % degree:
            raise SpecError(f"finetune.parallelism.{kind} ({degree}) must divide the model's attention heads ({heads})")
    if kv_heads % parallelism.tensor:
        raise SpecError(
            f"finetune.parallelism.tensor ({parallelism.tensor}) must divide the model's key-value heads ({kv_heads})"
        )
    if max(kv_heads, parallelism.sequence) % min(kv_heads, parallelism.sequence):
        raise SpecError(
            f"finetune.parallelism.sequence ({parallelism.sequence}) must divide the model's key-value heads"
            f" ({kv_heads}), or be a multiple of them"
        )
    if parallelism.pipeline == 1:
        return
    if config.num_hidden_layers < parallelism.pipeline:
        raise SpecError(
            f"finetune.parallelism.pipeline ({parallelism.pipeline}) must not exceed the model's layers"
            f" ({config.num_hidden_layers})"
        )
    if config.model_type not in STAGED_MODELS:
        raise SpecError(
            f"the base model is a {config.model_type}; finetune.parallelism.pipeline is for {', '.join(STAGED_MODELS)}:"
            " use zero 3 instead"
        )
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        raise SpecError(
            "the base model has layers with sliding-window attention, which the stages of a pipeline do not compute:"
            " use finetune.parallelism.zero 3 instead of pipeline"
        )


STAGED_MODELS = ("llama", "qwen2", "qwen3")
