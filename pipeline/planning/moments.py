"""What is alive on a rank at one moment, by kind, and how parameters lie in tensors."""

from dataclasses import dataclass, fields

from pipeline.planning.amounts import NOTHING, Amount
from pipeline.planning.workload import Held


@dataclass(frozen=True, kw_only=True)
class Moment:
    """What is alive at one moment of a step, in bytes."""

    name: str
    parameters: Amount = NOTHING
    optimizer: Amount = NOTHING
    gradients: Amount = NOTHING
    activations: Amount = NOTHING
    logits: Amount = NOTHING
    buffers: Amount = NOTHING
    """Of exchanges: DeepSpeed's buckets, and the copies that it sends."""
    work: Amount = NOTHING
    """Of the optimizer, for the time of its step."""
    copies: Amount = NOTHING
    """Of the state on its way into a checkpoint or out of one, and of the model when it is done."""
    holes: float = 0.0
    """Free, between the small tensors that are alive: see `activations.passing`."""

    @property
    def arena(self) -> float:
        """What malloc holds on cores, its holes included."""
        return sum(amount.small for amount in self.amounts.values()) + self.holes

    @property
    def alive(self) -> float:
        return sum(amount.total for amount in self.amounts.values())

    @property
    def amounts(self) -> dict[str, Amount]:
        """By kind."""
        return {kind: getattr(self, kind) for kind in KINDS}


KINDS = tuple(field.name for field in fields(Moment) if field.name not in ("name", "holes"))
STEADY = ("parameters", "optimizer", "copies")
"""These kinds stay; the others come and go in each step."""


def one_by_one(held: Held, value: float, copies: float = 1) -> Amount:
    """As many values as there are trained parameters, each parameter's in a tensor of its own."""
    return Amount.of(*((copies * count * size * value, size * value) for count, size in held.sizes))


def end_to_end(held: Held, value: float, copies: float = 1) -> Amount:
    """As many values as there are trained parameters, laid end to end: a tensor for each of the optimizer's groups."""
    return Amount.of(*((copies * group * value, group * value) for group in (held.decayed, held.undecayed)))
