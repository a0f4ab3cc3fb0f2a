"""The steps of a hyperparameter search: `suggest` draws the values of a trial, `study` says what the trials came to.

All state of a search is here: references to what its trials made. See docs/adr/0150-a-search-is-its-trials.md.
"""

from typing import Any, Literal

from pipeline.contracts.base import ArtifactRef, Contract, Result, Spec
from pipeline.contracts.search import Search

RELEASE_RUN_PREFIX = "search__"
"""The best trial of the search RUN is released by the run search__RUN, however often it is asked for."""
TrialState = Literal["running", "complete", "pruned", "failed"]


class Tried(Contract):
    """What later trials learn from a trial."""

    number: int
    values: dict[str, Any]
    """Dotted field to value."""
    scores: tuple[float, ...]
    """Of the objective, one a rung."""
    state: TrialState


class SuggestSpec(Spec):
    search: Search
    recipe: dict[str, Any]
    """As the user gave it, which a suggestion must not break."""
    number: int
    history: tuple[Tried, ...]
    """The trials of earlier rounds."""


class SuggestResult(Result):
    values: dict[str, Any]
    source: str
    """Where they come from, as a sentence."""


class TrialRung(Contract):
    """One training of a trial."""

    epochs: float
    finetuned: ArtifactRef
    evaluated: ArtifactRef | None = None
    """None where the objective needs no evaluation."""


class TrialRecord(Contract):
    """What a trial has made so far."""

    number: int
    suggestion: ArtifactRef | None = None
    rungs: tuple[TrialRung, ...] = ()
    state: TrialState = "running"
    reason: str = ""
    """Why it was pruned, or failed."""


class StudySpec(Spec):
    name: str
    """The recipe's."""
    search: Search
    trials: tuple[TrialRecord, ...]


class TrialSummary(Tried):
    """One line of the table at the end."""

    epochs: tuple[float, ...]
    """Of each of its trainings."""
    reason: str


class StudyResult(Result):
    """Files: trials.csv, history.png, and importances.png where there are two complete trials or more."""

    objective: str
    maximize: bool
    best: int
    """The number of a complete trial."""
    score: float
    values: dict[str, Any]
    """Of the best trial."""
    trials: tuple[TrialSummary, ...]
    importances: dict[str, float]
    """Field to its share in the differences between the complete trials (Watanabe et al. 2023, "PED-ANOVA")."""
