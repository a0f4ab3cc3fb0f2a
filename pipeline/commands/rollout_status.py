"""`slipway rollout status`: how far a model's newest rollout is, and, with `--watch`, how it goes on until it ends."""

import json
import time

from rich.console import Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from pipeline.commands import bars
from pipeline.commands.bars import interval_bar
from pipeline.commands.fleet import COLOURS, chosen, duration
from pipeline.commands.output import console, here
from pipeline.contracts.base import Contract
from pipeline.errors import EXIT_BAD_DATA, EXIT_DONE, SpecError
from pipeline.fleet.analysis.comparison import Comparison
from pipeline.fleet.analysis.live import Judgement, view_fleet
from pipeline.fleet.state import Rollout, outcome_of, said
from pipeline.fleet.views import ModelView
from pipeline.stack.layout import Layout

POLL_S = 0.5
SAY_EVERY_S = 5.0
"""At least so long between two lines of one step where there is no terminal."""
FAILED = ("failed", "rolled back")
GAP, NARROWEST = 2, 15
"""Characters: between two columns, and the least for a bar."""
VERDICTS = {"not worse": "green", "worse": "red", "undecided": "dim"}


class Progress(Contract):
    """One look at a rollout."""

    name: str
    generation: int
    version: str
    previous: str | None
    outcome: str
    """running, promoted, failed, rolled back, or unchanged."""
    duration: str
    step: int
    """Of the traffic steps, from 1; 0 before the first."""
    weight: int
    """Per cent of the traffic that the version has."""
    waits_for: str
    """Empty once it has ended."""
    reason: str
    client_requests: int = 0
    """That the canary answered in this step."""
    probes: int = 0
    """That the rollout sent it itself in this step."""
    comparisons: tuple[Comparison, ...] = ()
    """As they are now, or as they were at the end."""
    damaged: str = ""
    """What of it cannot be read, and what to do; empty if all of it can."""


def show(name: str, *, watch: bool, as_json: bool) -> int:
    """Prints the rollout as it is, or until it ends.

    Returns:
        The exit code: 65 if it failed or was rolled back, else 0.

    Raises:
        SpecError: no such model, or it was never rolled out.
    """
    layout, _ = here()
    progress = follow(layout, name) if watch and not as_json else look(layout, name)
    while watch and as_json and progress.outcome == "running":
        time.sleep(POLL_S)
        progress = look(layout, name)
    if as_json:
        print(json.dumps(progress.model_dump(mode="json"), indent=2))
    elif not watch:
        console.print(picture(progress))
    return EXIT_BAD_DATA if progress.outcome in FAILED else EXIT_DONE


def follow(layout: Layout, name: str) -> Progress:
    """Shows the rollout, and whichever newer one takes its place, until one ends: a picture that changes on a terminal,
    lines elsewhere."""
    if not console.is_terminal:
        return _lines(layout, name)
    progress = look(layout, name)
    with Live(picture(progress), console=console, refresh_per_second=4) as live:
        while progress.outcome == "running":
            time.sleep(POLL_S)
            progress = look(layout, name)
            live.update(picture(progress))
    return progress


def _lines(layout: Layout, name: str) -> Progress:
    """For logs and pipes: a line when something else happens, else one every few seconds."""
    before, said_at = ("", 0), 0.0
    while True:
        progress = look(layout, name)
        now = progress.waits_for, progress.generation
        if now != before and (
            now[1] != before[1] or time.monotonic() - said_at > SAY_EVERY_S or not progress.waits_for
        ):
            console.print(_line(progress), markup=False)
            before, said_at = now, time.monotonic()
        if progress.outcome != "running":
            return progress
        time.sleep(POLL_S)


def look(layout: Layout, name: str) -> Progress:
    """The newest rollout of `name` as it is now."""
    fleet = view_fleet(layout.home_path)
    (model,) = chosen(fleet, name)
    if not model.history:
        raise SpecError(f"{name} was never rolled out: make a version its champion with `./slipway promote {name} 1`")
    rollout = model.history[-1]
    running = rollout.outcome == "running"
    judgement = fleet.judgements.get(name)
    return Progress(
        name=name,
        generation=rollout.generation,
        version=rollout.version,
        previous=rollout.previous,
        outcome=outcome_of(rollout, model.generation),
        duration=duration(rollout),
        step=rollout.step + 1 if _has_begun_to_shift(model, rollout) else 0,
        weight=weight_of(model, rollout.version),
        waits_for=waits_for(model, rollout, judgement) if running else "",
        reason=rollout.reason,
        client_requests=judgement.client_requests if judgement else 0,
        probes=judgement.probes if judgement else 0,
        comparisons=judgement.comparisons if judgement and running else rollout.comparisons,
        damaged=fleet.damage_of(name),
    )


def weight_of(model: ModelView, version: str) -> int:
    """Per cent of the traffic that goes to any replicas of the version."""
    generations = {replica.generation for replica in model.replicas if replica.version == version}
    return sum(weight for generation, weight in model.weights.items() if generation in generations)


def _has_begun_to_shift(model: ModelView, rollout: Rollout) -> bool:
    return "start_canary" in rollout.phases and (weight_of(model, rollout.version) > 0 or "shift" in rollout.phases)


def waits_for(model: ModelView, rollout: Rollout, judgement: Judgement | None = None) -> str:
    """What has to happen next."""
    if rollout.paused:
        return f"`slipway rollout resume {model.name}`: paused {said(rollout.paused)}"
    if "start_canary" not in rollout.phases:
        started = [replica for replica in model.replicas if replica.generation == rollout.generation]
        well = sum(replica.healthy is True for replica in started)
        return f"replicas of version {rollout.version}: {well} of {len(started)} healthy" if started else "its replicas"
    if "shift" not in rollout.phases:
        weight = weight_of(model, rollout.version)
        seen = f": {judgement.reason}" if judgement and judgement.reason else ""
        return f"a judgement at {weight} % of the traffic{seen}" if weight else "its first traffic"
    return f"version {rollout.version} to be made what is served"


def picture(progress: Progress) -> Group:
    """All of it, a few lines."""
    return Group(*_head(progress), *([comparisons_table(progress.comparisons)] if progress.comparisons else []))


def _head(progress: Progress) -> list[str]:
    colour = COLOURS.get(progress.outcome, "dim")
    moved = f"version {progress.previous} → {progress.version}" if progress.previous else f"version {progress.version}"
    lines = [
        f"[bold]{escape(progress.name)}[/bold]  rollout {progress.generation}: {moved}"
        f"  [{colour}]{progress.outcome}[/]  {progress.duration}"
    ]
    if progress.step:
        seen = f", {progress.client_requests} requests of clients and {progress.probes} probes so far"
        lines.append(f"  step {progress.step}, {progress.weight} % of the traffic{seen if progress.waits_for else ''}")
    if progress.waits_for:
        lines.append(f"  waits for {escape(progress.waits_for)}")
    if progress.reason:
        lines.append(f"  {escape(progress.reason)}")
    if progress.damaged:
        lines.append(f"  [red]{escape(progress.damaged)}[/red]")
    return lines


def comparisons_table(comparisons: tuple[Comparison, ...]) -> Table:
    """A line for each measure, its interval as a bar where there is room for one."""
    titles = ["", "canary", "stable", "interval (margin)", "seen", "verdict"]
    rows = [
        [
            *(found.measure, _figure(found.canary, found.unit), _figure(found.stable, found.unit)),
            *(_interval(found), f"{found.num_canary}/{found.num_stable}", found.verdict),
        ]
        for found in comparisons
    ]
    others = sum(max(map(len, column)) + GAP for column in zip(titles, *rows, strict=True))
    width = bar_width(console.width - others)
    for row, found in zip(rows, comparisons, strict=True):
        row[-1] = f"[{VERDICTS[found.verdict]}]{found.verdict}[/]"
        if width:
            row.insert(3, interval_bar(found, width))
        else:
            del row[4]
    if width:
        titles.insert(3, "│ same ┊ margin")
    else:
        titles.remove("seen")
    table = Table(box=None, pad_edge=False)
    for title in titles:
        # Only the name of a measure may take two lines: a verdict that is cut off says nothing.
        table.add_column(
            title, justify="right" if title in ("canary", "stable", "seen") else "left", no_wrap=title != ""
        )
    table.columns[0].overflow = "fold"
    for row in rows:
        table.add_row(*row)
    return table


def bar_width(room: int) -> int:
    """Of a bar where the other columns leave `room` characters: an odd number, so that no difference is in the middle;
    0 where it would be too narrow to tell anything."""
    width = min(bars.WIDTH, room)
    return 0 if width < NARROWEST else (width - 1) // 2 * 2 + 1


def _interval(found: Comparison) -> str:
    ends = " … ".join("?" if end is None else f"{end:.3g}" for end in (found.low, found.high))
    return f"{ends} ({found.margin:.3g})"


def _figure(value: float | None, unit: str) -> str:
    """A share in per cent, where differences are in points."""
    return "" if value is None else f"{value:.3g} {'%' if unit == 'points' else unit}".strip()


def _line(progress: Progress) -> str:
    what = progress.waits_for and f"waits for {progress.waits_for}"
    told = what or progress.reason or f"version {progress.version} has {progress.weight} % of the traffic"
    also = f"; {progress.damaged}" if progress.damaged else ""
    return f"{progress.name} rollout {progress.generation}: {progress.outcome} {progress.duration}  {told}{also}"
