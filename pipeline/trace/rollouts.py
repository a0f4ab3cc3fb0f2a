"""The rollout behind a deployment, and what was served at a moment, from the fleet's state and the audit log."""

from urllib.parse import quote

from pipeline.audit import Entry, newest_first
from pipeline.audit.entries import NOBODY_SAID
from pipeline.audit.movers import MOVES
from pipeline.contracts.trace import Moment, Request, RolloutSeen
from pipeline.fleet.changes import ENDS
from pipeline.fleet.files import FleetFiles
from pipeline.fleet.state import Rollout
from pipeline.stack.layout import Layout

ROLLOUT_DAG = "rollout"


def entries_of(layout: Layout, request: Request) -> list[Entry]:
    """What the log says of the request's model, oldest first: from the move that led to its rollout on."""
    found: list[Entry] = []
    has_plan = has_shares = False
    for entry in newest_first(layout, model=request.model):
        found.append(entry)
        if has_plan and has_shares and entry.action in MOVES:
            break
        if entry.moment <= request.at:
            has_plan = has_plan or (entry.action == "planned" and entry.generation == request.deployment)
            has_shares = has_shares or entry.action == "moved"
    return found[::-1]


def find_rollout(layout: Layout, request: Request, entries: list[Entry]) -> RolloutSeen | None:
    """The rollout that started the replica; None if neither the state nor the log knows it.

    Rollouts that began after the request are others, of a state that was begun anew and counts from 1 again.

    Args:
        entries: what the audit log says of the request's model.
    """
    generation = request.deployment or 0
    told = _told([entry for entry in entries if entry.generation == generation], request.at)
    state = FleetFiles(layout.home_path).get(str(request.model))
    known = state.rollout(generation)
    if known is not None and known.started_at > request.at:
        known = None
    if known is None and not told:
        return None
    rollout = known or _from_log(told)
    deployment = state.deployment(generation) if known else None
    return RolloutSeen(
        generation=generation,
        version=rollout.version,
        previous=rollout.previous,
        by=rollout.by or _planner(told),
        why=_why(entries, told),
        outcome=rollout.outcome,
        reason=rollout.reason,
        started_at=rollout.started_at,
        ended_at=rollout.ended_at,
        url=_run_url(layout, rollout.request_id),
        bundle_digest=deployment.bundle_digest if deployment else _digest(told),
        entries=tuple(entry.number for entry in told),
        known_from="the fleet's state" if known else "the audit log",
    )


def find_moment(entries: list[Entry], at: float) -> Moment | None:
    """What the newest entries before `at` say, in seconds since 1970; None if the log begins later."""
    moved = next((entry for entry in reversed(entries) if entry.action == "moved" and entry.moment <= at), None)
    newest = next((entry for entry in reversed(entries) if entry.generation and entry.moment <= at), None)
    if moved is None or newest is None or newest.generation is None:
        return None
    return Moment(generation=newest.generation, shares=moved.details.get("to", {}))


def _told(entries: list[Entry], at: float) -> list[Entry]:
    """From the last plan before `at` to the next one."""
    starts = [index for index, entry in enumerate(entries) if entry.action == "planned"]
    begun = [index for index in starts if entries[index].moment <= at]
    if not begun:
        return [entry for entry in entries if entry.moment <= at] if not starts else []
    end = next((index for index in starts if index > begun[-1]), len(entries))
    return entries[begun[-1] : end]


def _from_log(told: list[Entry]) -> Rollout:
    first = next((entry for entry in told if entry.action == "planned"), told[0])
    end = next((entry for entry in told if entry.action in ENDS.values()), None)
    outcomes = {action: outcome for outcome, action in ENDS.items()}
    return Rollout(
        generation=first.generation or 0,
        request_id=str(first.details.get("request_id") or ""),
        version=first.version or "?",
        previous=first.details.get("from"),
        outcome=outcomes[end.action] if end else "running",
        reason=end.reason if end else "",
        by=first.actor if first.action == "planned" else "",
        started_at=first.moment,
        ended_at=end.moment if end else None,
    )


def _planner(told: list[Entry]) -> str:
    return next((entry.actor for entry in told if entry.action == "planned"), NOBODY_SAID)


def _why(entries: list[Entry], told: list[Entry]) -> str:
    """The reason of whoever moved the alias that this rollout followed; empty if nobody recorded it."""
    plan = next((entry for entry in told if entry.action == "planned"), None)
    if plan is None or plan.actor == NOBODY_SAID:
        return ""
    before = [entry for entry in entries if entry.number < plan.number]
    moved = next((entry for entry in reversed(before) if entry.action in MOVES), None)
    return moved.reason if moved and moved.version == plan.version else ""


def _digest(told: list[Entry]) -> str | None:
    return next((entry.details.get("bundle_digest") for entry in told if entry.action == "ready"), None)


def _run_url(layout: Layout, request_id: str) -> str | None:
    """Of the run in Airflow, whose id a rollout's request has; a rollback by a person has none."""
    if not request_id or request_id.startswith("rollback-") or not layout.stack_path.exists():
        return None
    return f"{layout.ports().public_url('airflow')}/dags/{ROLLOUT_DAG}/runs/{quote(request_id, safe='')}"
