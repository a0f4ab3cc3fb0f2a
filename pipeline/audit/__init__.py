"""The audit log: who changed what is served, when and why. Append-only, and tamper-evident by a hash chain.

`home/audit/log.jsonl` holds one entry a line, each with the digest of the one before; `home/audit/head.json` says how
many there are. Any process or container that shares the home may write.

    from pipeline import audit
    audit.record(layout, action="promote", actor=audit.person(), model="demo", version="3", reason="gates passed")
    audit.verify(layout).reason
"""

from pipeline.audit.entries import NOBODY_SAID, Entry, Event, person, rollout_actor
from pipeline.audit.log import newest, newest_first, read_entries, record, record_events
from pipeline.audit.movers import who_made_champion
from pipeline.audit.verification import Anchor, Verification, verify

__all__ = [
    "NOBODY_SAID",
    "Anchor",
    "Entry",
    "Event",
    "Verification",
    "newest",
    "newest_first",
    "person",
    "read_entries",
    "record",
    "record_events",
    "rollout_actor",
    "verify",
    "who_made_champion",
]
