"""What stands in the audit log, and how one entry is chained to the next.

The digest of an entry is the sha256 of its canonical JSON without the digest itself; `previous` is among what it
covers. So no entry can be changed, removed or moved without changing the digests of all that follow (the linked
time-stamps of Haber and Stornetta, 1991, https://doi.org/10.1007/BF00196791).
"""

import getpass
import json
import uuid
from datetime import UTC, datetime
from typing import Any

from pydantic import Field, ValidationError

from pipeline.contracts.base import Contract, Digest, canonical_json, sha256_hex
from pipeline.errors import IntegrityError

GENESIS = "0" * 64
"""What the first entry has as its `previous`."""
NOBODY_SAID = "unknown"
"""The actor where nothing says who it was: MLflow does not keep who moved an alias."""


def person() -> str:
    """The user of the operating system who runs this process."""
    return getpass.getuser()


def rollout_actor(generation: int) -> str:
    """The rollout with that number, as an actor."""
    return f"rollout {generation}"


def now() -> str:
    """This moment: UTC, ISO 8601, in milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _new_id() -> str:
    return uuid.uuid4().hex


def _shares(shares: dict[str, int] | None) -> str:
    return ", ".join(f"{name}: {weight} %" for name, weight in (shares or {}).items()) or "nothing"


class Event(Contract):
    """Something that happened, before it has a place in the log."""

    id: str = Field(default_factory=_new_id)
    at: str = Field(default_factory=now)
    """When it happened: UTC, ISO 8601."""
    action: str
    """In lower case and one word: promote, rollback, planned, moved, promoted, failed, pause, key-created …"""
    actor: str
    """A person's user name, `rollout 7`, or `unknown`."""
    model: str | None = None
    version: str | None = None
    generation: int | None = None
    """The rollout that it belongs to."""
    reason: str = ""
    details: dict[str, Any] = Field(default_factory=dict)
    """Further facts, such as `from` and `to`. Never a secret: everybody who may read the home reads it."""
    source: str = ""
    """The model whose state file told of it first; empty if it was recorded directly."""

    @property
    def moment(self) -> float:
        """When it happened, in seconds since 1970."""
        return datetime.fromisoformat(self.at).timestamp()

    @property
    def why(self) -> str:
        """The reason, for people; of traffic that moved, from where to where."""
        if self.action != "moved":
            return self.reason
        return f"{_shares(self.details.get('from'))} → {_shares(self.details.get('to'))}"


class Entry(Event):
    """An event at its place in the chain."""

    number: int
    """Counts from 1 without a gap."""
    previous: Digest
    digest: Digest

    @classmethod
    def after(cls, number: int, previous: str, event: Event) -> "Entry":
        """`event` as the entry that follows number `number`, whose digest is `previous`."""
        fields = {**event.model_dump(), "number": number + 1, "previous": previous}
        return cls(**fields, digest=sha256_hex(canonical_json(fields)))

    def line(self) -> bytes:
        """As it stands in the log."""
        return canonical_json(self.model_dump()) + b"\n"


def parse(line: bytes) -> Entry:
    """The entry that `line`, without its end of line, holds.

    Raises:
        IntegrityError: it holds none, or one whose digest is not its content's.
    """
    try:
        fields = json.loads(line)
        entry = Entry.model_validate(fields)
    except (ValueError, ValidationError, RecursionError) as error:
        raise IntegrityError(f"{line[:80]!r} is no entry") from error
    if canonical_json(fields) != line:
        raise IntegrityError(f"entry {entry.number} is not written as it was: expected canonical JSON")
    actual = sha256_hex(canonical_json({name: value for name, value in fields.items() if name != "digest"}))
    if actual != entry.digest:
        raise IntegrityError(
            f"entry {entry.number} was altered: its digest is {entry.digest}, but what it says has {actual}"
        )
    return entry
