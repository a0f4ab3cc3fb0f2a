"""Who moved the alias that a rollout follows: MLflow does not keep it, so the log is asked."""

from pathlib import Path

from pipeline.audit.entries import NOBODY_SAID
from pipeline.audit.log import newest_first
from pipeline.stack.layout import Layout

MOVES = ("promote", "rollback", "put-back")


def who_made_champion(home: Layout | Path, model: str, version: str) -> tuple[str, str]:
    """Actor and reason of the newest entry about the champion of `model`, if it is about `version`; else both empty.

    The plan of a rollout of the same version counts, too: whoever it names has not been followed by anybody known. Its
    reason is its own. A move that was refused says nothing, nor does an older entry: somebody has moved the alias in
    MLflow itself.
    """
    for entry in newest_first(home, model=model):
        if entry.action in (*MOVES, "planned", "refused", "rolled-back"):
            counts = entry.action in (*MOVES, "planned") and entry.version == version and entry.actor != NOBODY_SAID
            return (entry.actor, entry.why if entry.action in MOVES else "") if counts else ("", "")
    return "", ""
