"""What fine-tuning runs on, as far as a plan needs to know it."""

from typing import Annotated

from pydantic import Field

from pipeline.contracts.base import Contract

Positive = Annotated[float, Field(gt=0)]


class Cluster(Contract):
    """Figures of the machines; what is left out is read from the recipe or this machine, or assumed and said so."""

    accelerator: str | None = None
    """Each rank computes on one: a name of pipeline/planning/accelerators.py, such as h100-80gb, or `other`. None: the
    ranks compute on their machine's cores."""
    memory_gb: Positive | None = None
    """Of each accelerator; without them, of each node, for its ranks together."""
    tflops: Positive | None = None
    """What a rank reaches in products of matrices, in the training's precision."""
    bandwidth_gbps: Positive | None = None
    """Between two nodes, in gigabits per second and direction, for each rank."""
