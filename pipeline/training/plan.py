"""What a node's training processes are told: one JSON file, written by the step, read by every rank of the node."""

import json
from pathlib import Path

from pydantic import Field

from pipeline.contracts.base import Contract
from pipeline.contracts.finetune import Finetune
from pipeline.errors import DataError, IntegrityError, SlipwayError, SpecError, TransientError

FAULTS: dict[str, type[SlipwayError]] = {
    kind.__name__: kind for kind in (SpecError, DataError, IntegrityError, TransientError)
}
"""What a rank can find out that no restart would change (the last one: that the attempt should end)."""


class TrainingPlan(Contract):
    """Paths are of this node; `settings` are the same on all of them."""

    settings: Finetune
    node_rank: int
    threads: int
    """Of each rank."""
    model_path: Path
    """config.json, the tokenizer, and the weights unless `fresh`."""
    teacher_path: Path | None = None
    """With method distill: as `model_path`."""
    fresh: bool
    """The weights start at random, from the seed."""
    tokens_path: Path
    """See `pipeline.training.tokens`."""
    checkpoints_uri: str
    """{store}/checkpoints/{progress key}"""
    checkpoints_path: Path
    """For what is on its way to the store."""
    events_path: Path
    """Figures for people, a JSON object a line, by the first rank."""
    fault_path: Path
    outcome_path: Path
    output_path: Path
    """Where the first rank leaves the Hugging Face folder and training/."""

    @property
    def world_size(self) -> int:
        return self.settings.world_size

    def save(self, path: Path) -> None:
        path.write_text(self.model_dump_json(indent=2))

    @classmethod
    def load(cls, path: Path) -> "TrainingPlan":
        return cls.model_validate_json(path.read_bytes())


class Outcome(Contract):
    """What the first rank reports at the end."""

    steps: int
    parameters: int
    final_train_loss: float
    train_tokens: int
    figures: dict[str, float] = Field(default_factory=dict)
    """Not the same twice: seconds, tokens per second, peak memory."""


def write_fault(path: Path, error: SlipwayError) -> None:
    """Tells the node's step why training must end."""
    kind = next(kind for kind in type(error).__mro__ if kind.__name__ in FAULTS).__name__
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(json.dumps({"kind": kind, "message": str(error)}))
    temporary.replace(path)


def read_fault(path: Path) -> SlipwayError | None:
    if not path.is_file():
        return None
    fault = json.loads(path.read_bytes())
    return FAULTS[fault["kind"]](fault["message"])
