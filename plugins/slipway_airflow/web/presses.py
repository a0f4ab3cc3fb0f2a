"""What a press of a button says, and which buttons a model has now."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from pipeline.contracts.base import Contract
from pipeline.fleet.state import Rollout
from pipeline.fleet.views import ModelView

Action = Literal["promote", "pause", "resume", "rollback"]


class Press(Contract):
    """A confirmed dialog."""

    model: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    action: Action
    version: Annotated[str, StringConstraints(pattern=r"^[0-9]{1,9}$")] | None = None
    """To promote."""
    reason: Annotated[str, StringConstraints(strip_whitespace=True, min_length=3, max_length=500)]
    """For the audit log."""
    generation: Annotated[int, Field(ge=0)]
    """The newest rollout's number as the page showed it."""


def controls(model: ModelView | None, *, is_registered: bool) -> tuple[Action, ...]:
    """The buttons of a model, in the page's order.

    Args:
        is_registered: MLflow answers and knows the model.
    """
    found: list[Action] = ["promote"] if is_registered else []
    newest = model.history[-1] if model and model.history else None
    if newest and newest.outcome == "running":
        if newest.paused:
            found.append("resume")
        elif "shift" not in newest.phases:
            found.append("pause")
    if model and can_go_back(model):
        found.append("rollback")
    return tuple(found)


def can_go_back(model: ModelView) -> bool:
    """Whether there is a version before: on trial beside it, or about to be, still warm, or promoted over."""
    newest = model.history[-1] if model.history else None
    starts = newest is not None and newest.outcome == "running" and newest.previous not in (None, newest.version)
    return starts or bool(model.canary or model.previous) or any(_replaced_one(rollout) for rollout in model.history)


def _replaced_one(rollout: Rollout) -> bool:
    return rollout.outcome == "promoted" and rollout.previous not in (None, rollout.version)
