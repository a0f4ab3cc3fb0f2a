"""Who moved the alias that a rollout follows: MLflow does not keep it, so the log is asked."""

from pathlib import Path

from pipeline.audit.log import newest_first
from pipeline.stack.layout import Layout

MOVES = ("promote", "rollback", "put-back")


def who_made_champion(home: Layout | Path, model: str, version: str) -> str:
    """The actor of the newest entry about the champion of `model`, if it is about `version`; else empty.

    An entry that is older than the last rollout's plan, or of a move that was refused, says nothing about a champion
    that was found now: somebody has moved the alias in MLflow itself.
    """
    for entry in newest_first(home, model=model):
        if entry.action in (*MOVES, "refused", "planned", "rolled-back"):
            return entry.actor if entry.action in MOVES and entry.version == version else ""
    return ""
