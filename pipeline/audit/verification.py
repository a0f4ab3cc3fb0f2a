"""Whether the log is what was written: every digest, every link, its end, and what was kept of it elsewhere."""

from collections.abc import Iterable
from pathlib import Path

from pipeline.audit.entries import GENESIS, Entry, parse
from pipeline.audit.log import Head, log_path, raw_lines, read_head
from pipeline.contracts.base import Contract, Digest
from pipeline.errors import IntegrityError
from pipeline.stack.layout import Layout


class Anchor(Contract):
    """The digest that entry `number` had when somebody elsewhere noted it."""

    number: int
    digest: Digest
    where: str


class Verification(Contract):
    """What `verify` found."""

    whole: bool
    num_entries: int
    """Intact ones before the first fault."""
    newest_digest: Digest
    """Of the last of those."""
    num_anchors: int = 0
    broken_number: int | None = None
    """The first entry that is missing, altered, or out of its place; None also where only a digest that is kept
    elsewhere was changed."""
    reason: str


class _Broken(Exception):
    """With the number of the first entry that is not in order, and why."""


def verify(home: Layout | Path, anchors: Iterable[Anchor] = ()) -> Verification:
    """Looks at the whole log.

    Args:
        anchors: digests that were kept elsewhere; see `pipeline.audit.anchors`.
    """
    wanted = list(anchors)
    head = read_head(home)  # before the log, which then holds at least as much, whoever writes meanwhile
    digests: dict[int, str] = {}
    try:
        for position, line in enumerate(raw_lines(home), start=1):
            entry = _entry(line, position)
            _check_place(entry, position, digests.get(position - 1, GENESIS))
            digests[position] = entry.digest
        _check_end(head or read_head(home), digests)
        for anchor in wanted:
            _check_anchor(anchor, digests)
    except _Broken as fault:
        number, reason = fault.args
        return _found(digests, whole=False, broken_number=number, reason=f"{log_path(home)}: {reason}")
    kept = f", and as {len(wanted)} digests say that were kept elsewhere" if wanted else ""
    return _found(
        digests,
        whole=True,
        num_anchors=len(wanted),
        reason=f"all {len(digests)} entries are as they were written{kept}",
    )


def _found(digests: dict[int, str], **values: object) -> Verification:
    newest = digests.get(len(digests), GENESIS)
    return Verification.model_validate({"num_entries": len(digests), "newest_digest": newest, **values})


def _entry(line: bytes, position: int) -> Entry:
    try:
        return parse(line)
    except IntegrityError as error:
        raise _Broken(position, f"line {position}: {error}") from error


def _check_place(entry: Entry, position: int, previous: str) -> None:
    if entry.number > position:
        missing = (
            f"entry {position} is" if entry.number == position + 1 else f"entries {position} to {entry.number - 1} are"
        )
        raise _Broken(position, f"line {position} holds entry {entry.number}: {missing} missing or moved")
    if entry.number < position:
        raise _Broken(position, f"line {position} holds entry {entry.number} again, expected entry {position}")
    if entry.previous != previous:
        raise _Broken(
            position,
            f"entry {position} follows one with the digest {entry.previous}, but entry {position - 1} has {previous}:"
            " one of them was replaced",
        )


def _check_end(head: Head | None, digests: dict[int, str]) -> None:
    last = len(digests)
    if head is None:
        if last > 1:
            raise _Broken(last + 1, "head.json is gone or damaged, so entries may be missing at the end")
        return
    if head.number > last:
        raise _Broken(last + 1, f"entries {last + 1} to {head.number} were cut off the end, says head.json")
    if head.number and digests[head.number] != head.digest:
        raise _Broken(
            head.number,
            f"entry {head.number} has the digest {digests[head.number]}, but head.json says {head.digest}: the log was"
            " replaced",
        )


def _check_anchor(anchor: Anchor, digests: dict[int, str]) -> None:
    actual = digests.get(anchor.number)
    if actual != anchor.digest:
        found = f"it has {actual}" if actual else "there is no such entry"
        raise _Broken(
            anchor.number,
            f"entry {anchor.number} had the digest {anchor.digest}, says {anchor.where}, but {found}: the log was"
            " replaced",
        )
