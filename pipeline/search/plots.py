"""Pictures of a search: how its trials scored one after the other, and which fields mattered."""

from pathlib import Path
from typing import Any

from pipeline.contracts.study import StudyResult

COLOURS = {"complete": "#1f77b4", "pruned": "#ff7f0e"}
LABEL_CHARS = 32


def plot_history(result: StudyResult, path: Path) -> None:
    """Each trial's last score, and the best of the complete ones so far."""
    figure, axes = _figure()
    for state, colour in COLOURS.items():
        shown = [(trial.number, trial.scores[-1]) for trial in result.trials if trial.state == state and trial.scores]
        if shown:
            axes.scatter(*zip(*shown, strict=True), color=colour, label=f"{state} ({len(shown)})")
    failed = [trial.number for trial in result.trials if trial.state == "failed"]
    for number in failed:
        axes.axvline(number, color="#d62728", alpha=0.4, linestyle=":", label="failed" if number == failed[0] else None)
    numbers, best = best_so_far(result)
    axes.step(numbers, best, where="post", color="#2ca02c", label="best so far")
    axes.annotate(f"trial {result.best}", (result.best, result.score), textcoords="offset points", xytext=(6, 6))
    axes.set_xlabel("trial")
    axes.set_ylabel(result.objective)
    axes.legend(loc="best", fontsize="small")
    figure.savefig(path)


def plot_importances(result: StudyResult, path: Path) -> None:
    """The field that matters most on top."""
    figure, axes = _figure()
    items = sorted(result.importances.items(), key=lambda item: item[1])
    axes.barh([key[-LABEL_CHARS:] for key, _ in items], [value for _, value in items], color="#1f77b4")
    axes.set_xlabel(f"share in the differences of {result.objective}")
    figure.savefig(path)


def best_so_far(result: StudyResult) -> tuple[list[int], list[float]]:
    """Numbers of the complete trials, and the best score up to each."""
    numbers: list[int] = []
    best: list[float] = []
    for trial in result.trials:
        if trial.state == "complete":
            numbers.append(trial.number)
            better = max if result.maximize else min
            best.append(better([*best[-1:], trial.scores[-1]]))
    return numbers, best


def _figure() -> tuple[Any, Any]:
    """A figure of its own, which no display needs to know of."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    return figure, figure.subplots()
