"""`slipway audit`: what the audit log says, and whether it is as it was written."""

from collections.abc import Iterator
from datetime import datetime
from itertools import islice

from rich.markup import escape
from rich.table import Table

from pipeline import audit
from pipeline.audit.log import log_path
from pipeline.commands.output import console, here
from pipeline.errors import IntegrityError, TransientError
from pipeline.fleet.files import FleetFiles
from pipeline.fleet.state import model_paths
from pipeline.stack import mlflow_part
from pipeline.stack.layout import Layout


def show(name: str | None, action: str | None, *, last: int, as_json: bool) -> None:
    """The newest entries that are asked for, oldest first."""
    layout, _ = here()
    FleetFiles(layout.home_path).record_all()
    found = list(islice(_matching(layout, name, action), last))[::-1]
    if as_json:
        for entry in found:
            print(entry.model_dump_json())
        return
    if not found:
        wanted = " ".join(filter(None, (name and f"of {name}", action and f"with the action {action}")))
        console.print(f"No entry {wanted} in {log_path(layout)}.".replace("  ", " "), soft_wrap=True)
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("#", "when", "who", "what", "model", "version", "rollout", "why"):
        table.add_column(heading, justify="right" if heading == "#" else "left", overflow="fold")
    for entry in found:
        table.add_row(*map(escape, _cells(entry)))
    console.print(table)


def _matching(layout: Layout, name: str | None, action: str | None) -> Iterator[audit.Entry]:
    return (entry for entry in audit.newest_first(layout, model=name) if action in (None, entry.action))


def _cells(entry: audit.Entry) -> tuple[str, ...]:
    when = datetime.fromisoformat(entry.at).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    rollout = "" if entry.generation is None else str(entry.generation)
    cells = (str(entry.number), when, entry.actor, entry.action, entry.model or "", entry.version or "", rollout)
    return *cells, entry.why


def verify(*, as_json: bool) -> None:
    """Checks the chain, then what MLflow keeps of it.

    Raises:
        IntegrityError: the log is not as it was written, or what MLflow keeps of it was changed.
        TransientError: its chain is whole, but MLflow does not say what it keeps.
    """
    layout, _ = here()
    FleetFiles(layout.home_path).record_all()
    found = audit.verify(layout)
    if found.whole:
        found = _compared(layout, found)
    if as_json:
        print(found.model_dump_json(indent=2))
    if not found.whole:
        place = "" if found.broken_number is None else f"the audit log is broken at entry {found.broken_number}: "
        raise IntegrityError(f"{place}{found.reason}")
    if not as_json:
        console.print(f"{found.reason}; the newest is {found.num_entries} {found.newest_digest}", soft_wrap=True)


def _compared(layout: Layout, found: audit.Verification) -> audit.Verification:
    """With what MLflow keeps of a log whose own chain is whole."""
    try:
        return audit.verify(layout, _kept_elsewhere(layout, found))
    except IntegrityError as error:
        return found.model_copy(update={"whole": False, "reason": str(error)})


def _kept_elsewhere(layout: Layout, found: audit.Verification) -> list[audit.Anchor]:
    if not layout.stack_path.exists():
        return []
    from pipeline.registry.anchors import anchors
    from pipeline.registry.models import Registry

    try:
        registry = Registry(mlflow_part.tracking_uri(layout), layout.home_path)
        return anchors(registry, {path.stem for path in model_paths(layout.home_path)})
    except TransientError as error:
        raise TransientError(f"{found.reason}, but what MLflow keeps of it could not be compared: {error}") from error
