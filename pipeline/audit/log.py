"""Writes and reads the log. One writer at a time, by a lock on a file that the kernel frees when its holder dies.

A writer appends whole lines in one write, flushes them to disk, and then replaces the head. Killed in between, it
leaves a head that is behind, or part of a line: the next writer catches up with the former and cuts off the latter,
which nobody was ever told was written. A log that somebody has altered is written on all the same, since a rollback
must not wait for it: `verify` finds the place.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from pipeline.artifacts.locks import locked
from pipeline.audit.entries import GENESIS, Entry, Event, parse
from pipeline.contracts.base import Contract, Digest, canonical_json
from pipeline.errors import IntegrityError
from pipeline.stack.layout import Layout, write_json

_BLOCK_BYTES = 1 << 16


class Head(Contract):
    """How far the log goes. Beside the log, so that cutting entries off its end is noticed."""

    number: int = 0
    digest: Digest = GENESIS
    size_bytes: int = 0
    last_events: dict[str, str] = Field(default_factory=dict)
    """The last event of each source that is in the log."""

    def moved_to(self, entry: Entry, size_bytes: int) -> "Head":
        last = {**self.last_events, entry.source: entry.id} if entry.source else self.last_events
        return Head(number=entry.number, digest=entry.digest, size_bytes=size_bytes, last_events=last)


def log_path(home: Layout | Path) -> Path:
    """One entry a line."""
    return _folder(home) / "log.jsonl"


def head_path(home: Layout | Path) -> Path:
    """How many entries there are, and the last one's digest."""
    return _folder(home) / "head.json"


def _folder(home: Layout | Path) -> Path:
    return (home if isinstance(home, Layout) else Layout(Path(home))).audit_path


def record(
    home: Layout | Path,
    *,
    action: str,
    actor: str,
    model: str | None = None,
    version: str | None = None,
    generation: int | None = None,
    reason: str = "",
    details: dict[str, Any] | None = None,
) -> Entry:
    """Appends one entry; it is on disk when this returns.

    What changes something outside the fleet's state is recorded before it is done, so that nothing is done without an
    entry; changes of the fleet's state record themselves (`pipeline.fleet.files`).

    Args:
        home: the home folder.
        action: one word in lower case; docs/audit.md lists them.
        actor: `person()`, an Airflow user's name, or `rollout_actor(generation)`.
        details: plain JSON, without secrets.
    """
    event = Event(
        action=action,
        actor=actor,
        model=model,
        version=version,
        generation=generation,
        reason=reason,
        details=details or {},
    )
    return _append(home, lambda: [event])[0]


def record_events(home: Layout | Path, source: str, events: Callable[[], Sequence[Event]]) -> list[Entry]:
    """Appends those of the last `events` of a source that the log does not hold yet; harmless to repeat.

    They are handed over in the same order until they are recorded; only then come newer ones. They are asked for while
    no other process writes: who found them earlier might come after newer ones, and would write them twice.
    """
    return _append(home, events, source=source) if events() else []


def _append(home: Layout | Path, find: Callable[[], Sequence[Event]], source: str = "") -> list[Entry]:
    folder = _folder(home)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with locked(folder / "lock"):
        descriptor = os.open(log_path(home), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            known = read_head(home)
            head = _catch_up(descriptor, known or Head())
            events = find()
            if source:
                events = _unrecorded(events, head.last_events.get(source))
            entries: list[Entry] = []
            for event in events:
                last = entries[-1] if entries else head
                entries.append(Entry.after(last.number, last.digest, event))
            if entries:
                head = _write(descriptor, entries, head)
        finally:
            os.close(descriptor)
        if head != known:
            write_json(head_path(home), head)
    return entries


def _unrecorded(events: Sequence[Event], last: str | None) -> list[Event]:
    ids = [event.id for event in events]
    return list(events[ids.index(last) + 1 :]) if last in ids else list(events)


def _write(descriptor: int, entries: list[Entry], head: Head) -> Head:
    size_bytes = os.lseek(descriptor, 0, os.SEEK_END)
    data = b"".join(entry.line() for entry in entries)
    if size_bytes and os.pread(descriptor, 1, size_bytes - 1) != b"\n":  # somebody cut a line in two
        data, size_bytes = b"\n" + data, size_bytes + 1
    while data:
        data = data[os.write(descriptor, data) :]
    os.fsync(descriptor)
    for entry in entries:
        size_bytes += len(entry.line())
        head = head.moved_to(entry, size_bytes)
    return head


def _catch_up(descriptor: int, head: Head) -> Head:
    """The head with what a writer added that died before it replaced it; part of a line is cut off.

    Where entries were cut off the end, the numbers go on after the ones that are missing.
    """
    size_bytes = os.fstat(descriptor).st_size
    start = min(head.size_bytes, size_bytes)
    added = os.pread(descriptor, size_bytes - start, start)
    whole, _, torn = added.rpartition(b"\n")
    if torn:
        os.ftruncate(descriptor, size_bytes - len(torn))
    position = start
    for line in whole.split(b"\n") if whole else []:
        position += len(line) + 1
        try:
            head = head.moved_to(parse(line), position)
        except IntegrityError:
            continue  # verify names it
    return head


def read_head(home: Layout | Path) -> Head | None:
    """None if there is none, or none that can be read."""
    try:
        return Head.model_validate_json(head_path(home).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def newest(home: Layout | Path) -> Head:
    """How far the log goes now: what is to be kept elsewhere to notice a log that was replaced as a whole."""
    return read_head(home) or Head()


def read_entries(home: Layout | Path) -> Iterator[Entry]:
    """Every entry, oldest first; none if nothing was recorded.

    Raises:
        IntegrityError: a line was altered.
    """
    for number, line in enumerate(raw_lines(home), start=1):
        try:
            yield parse(line)
        except IntegrityError as error:
            raise IntegrityError(f"{log_path(home)}, line {number}: {error}; see `slipway audit --verify`") from error


def raw_lines(home: Layout | Path) -> Iterator[bytes]:
    """The complete lines, without their ends."""
    path = log_path(home)
    if path.exists():
        with path.open("rb") as file:
            for line in file:
                if line.endswith(b"\n"):
                    yield line[:-1]


def newest_first(home: Layout | Path, *, model: str | None = None) -> Iterator[Entry]:
    """The entries from the newest on, read in blocks from the end; lines that were altered are left out.

    Args:
        model: leave out what is not about it, before it costs the time to read it in full.
    """
    wanted = b"" if model is None else b'"model":' + canonical_json(model)
    for line in _lines_from_the_end(log_path(home)):
        if wanted in line:
            try:
                entry = parse(line)
            except IntegrityError:
                continue  # verify names it
            if model in (None, entry.model):
                yield entry


def _lines_from_the_end(path: Path) -> Iterator[bytes]:
    """Complete ones only, without their ends."""
    if not path.exists():
        return
    with path.open("rb") as file:
        end, rest, is_newest = file.seek(0, os.SEEK_END), b"", True
        while end > 0:
            start = max(0, end - _BLOCK_BYTES)
            file.seek(start)
            first, *lines = (file.read(end - start) + rest).split(b"\n")
            if is_newest and lines:
                lines.pop()  # empty, or a line that is being written
                is_newest = False
            yield from reversed(lines)
            end, rest = start, first
        if not is_newest:
            yield rest
