"""The audit log: what is written stays, and whoever alters it is found."""

import json
import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import audit
from pipeline.audit import verification
from pipeline.audit.entries import GENESIS, Entry, Event
from pipeline.audit.log import head_path, log_path, raw_lines
from pipeline.contracts.base import canonical_json, sha256_hex
from pipeline.errors import IntegrityError


def fill(home: Path, number: int = 5) -> list[Entry]:
    return [
        audit.record(
            home, action="promote", actor="ada", model="m", version=str(index), reason="better", details={"from": None}
        )
        for index in range(1, number + 1)
    ]


def lines(home: Path) -> list[bytes]:
    return log_path(home).read_bytes().splitlines(keepends=True)


def put(home: Path, changed: list[bytes]) -> None:
    log_path(home).write_bytes(b"".join(changed))


def test_entries_are_numbered_chained_and_read_back(tmp_path: Path) -> None:
    """Each holds the digest of the one before."""
    written = fill(tmp_path)
    assert list(audit.read_entries(tmp_path)) == written
    assert list(audit.newest_first(tmp_path)) == written[::-1]
    assert [entry.number for entry in written] == [1, 2, 3, 4, 5]
    assert [entry.previous for entry in written] == [GENESIS, *(entry.digest for entry in written[:-1])]
    found = audit.verify(tmp_path)
    assert (found.whole, found.num_entries, found.newest_digest) == (True, 5, written[-1].digest)


def test_no_log_is_a_whole_log_without_entries(tmp_path: Path) -> None:
    """And reading creates none."""
    assert audit.verify(tmp_path).whole
    assert list(audit.read_entries(tmp_path)) == list(audit.newest_first(tmp_path)) == []
    assert list(tmp_path.iterdir()) == []


def test_only_the_owner_may_read_the_log(tmp_path: Path) -> None:
    """It names people."""
    fill(tmp_path, 1)
    assert log_path(tmp_path).stat().st_mode & 0o777 == 0o600
    assert log_path(tmp_path).parent.stat().st_mode & 0o777 == 0o700


def edited(entries: list[bytes]) -> list[bytes]:
    return [*entries[:2], entries[2].replace(b'"ada"', b'"bob"'), *entries[3:]]


def edited_with_a_new_digest(entries: list[bytes]) -> list[bytes]:
    fields = json.loads(entries[2])
    fields["actor"] = "bob"
    fields["digest"] = sha256_hex(canonical_json({name: fields[name] for name in fields if name != "digest"}))
    return [*entries[:2], canonical_json(fields) + b"\n", *entries[3:]]


def spaced_out(entries: list[bytes]) -> list[bytes]:
    return [*entries[:2], json.dumps(json.loads(entries[2])).encode() + b"\n", *entries[3:]]


def moved(entries: list[bytes]) -> list[bytes]:
    return [*entries[:2], entries[3], entries[2], entries[4]]


TAMPERINGS = [
    (edited, 3, "entry 3 was altered"),
    (edited_with_a_new_digest, 4, "entry 4 follows one with the digest"),
    (spaced_out, 3, "entry 3 is not written as it was"),
    (lambda entries: [*entries[:2], *entries[3:]], 3, "line 3 holds entry 4: entry 3 is missing or moved"),
    (moved, 3, "line 3 holds entry 4"),
    (lambda entries: [*entries[:3], entries[2], *entries[3:]], 4, "line 4 holds entry 3 again"),
    (lambda entries: entries[:3], 4, "entries 4 to 5 were cut off the end"),
    (lambda entries: [], 1, "entries 1 to 5 were cut off the end"),
    (lambda entries: [*entries[:4], entries[4][:40]], 5, "entries 5 to 5 were cut off the end"),
    (lambda entries: [*entries[:2], b"hello\n", *entries[3:]], 3, "is no entry"),
    (lambda entries: [*entries[:2], b"[" * 100_000 + b"\n", *entries[3:]], 3, "is no entry"),
]


@pytest.mark.parametrize(("tamper", "number", "reason"), TAMPERINGS)
def test_the_first_entry_that_is_not_in_order_is_named(tmp_path: Path, tamper, number: int, reason: str) -> None:  # type: ignore[no-untyped-def]
    """By its number, and why."""
    fill(tmp_path)
    put(tmp_path, tamper(lines(tmp_path)))
    found = audit.verify(tmp_path)
    assert (found.whole, found.broken_number) == (False, number)
    assert reason in found.reason


@pytest.mark.parametrize(("tamper", "number", "reason"), TAMPERINGS)
def test_writing_goes_on_after_tampering_and_does_not_hide_it(
    tmp_path: Path,
    tamper,  # type: ignore[no-untyped-def]
    number: int,
    reason: str,
) -> None:
    """A rollback does not wait for somebody to mend the log; the new entry has a line of its own."""
    fill(tmp_path)
    put(tmp_path, tamper(lines(tmp_path)))
    new = audit.record(tmp_path, action="rollback", actor="eve")
    assert new.number == 6
    assert next(audit.newest_first(tmp_path)) == new
    found = audit.verify(tmp_path)
    assert (found.whole, found.broken_number) == (False, number)


def test_reading_an_altered_entry_is_an_error_that_names_the_line(tmp_path: Path) -> None:
    """From the newest on, the altered one is left out."""
    fill(tmp_path)
    put(tmp_path, edited(lines(tmp_path)))
    with pytest.raises(IntegrityError, match=r"log\.jsonl, line 3: entry 3 was altered.*slipway audit --verify"):
        list(audit.read_entries(tmp_path))
    assert [entry.number for entry in audit.newest_first(tmp_path)] == [5, 4, 2, 1]


def test_a_log_without_its_head_is_not_called_whole(tmp_path: Path) -> None:
    """Entries may have been cut off with it; the next entry makes a new head."""
    fill(tmp_path)
    head_path(tmp_path).unlink()
    assert "head.json is gone" in audit.verify(tmp_path).reason
    assert audit.record(tmp_path, action="pause", actor="ada").number == 6
    assert audit.verify(tmp_path).whole


def test_a_log_that_was_replaced_as_a_whole_is_told_by_what_was_kept_elsewhere(tmp_path: Path) -> None:
    """Chain and head of the forged log are in order."""
    kept = fill(tmp_path)[2]
    anchor = audit.Anchor(number=kept.number, digest=kept.digest, where="m version 3 in MLflow")
    assert audit.verify(tmp_path, [anchor]).num_anchors == 1
    for path in (log_path(tmp_path), head_path(tmp_path)):
        path.unlink()
    fill(tmp_path)
    assert audit.verify(tmp_path).whole
    found = audit.verify(tmp_path, [anchor])
    assert (found.whole, found.broken_number) == (False, 3)
    assert "says m version 3 in MLflow" in found.reason


def test_a_writer_killed_before_it_replaced_the_head_loses_nothing(tmp_path: Path) -> None:
    """The next one catches up."""
    fill(tmp_path, 2)
    before = head_path(tmp_path).read_bytes()
    written = fill(tmp_path, 1)[0]
    head_path(tmp_path).write_bytes(before)
    assert audit.verify(tmp_path).whole
    new = audit.record(tmp_path, action="pause", actor="ada")
    assert (new.number, new.previous) == (4, written.digest)
    assert audit.verify(tmp_path).num_entries == 4


def test_an_entry_that_is_written_while_somebody_verifies_is_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head is replaced between the last line and the end of the check."""
    fill(tmp_path, 2)

    def lines_then_a_writer(home: Path) -> Iterator[bytes]:
        yield from raw_lines(home)
        fill(tmp_path, 1)

    monkeypatch.setattr(verification, "raw_lines", lines_then_a_writer)
    found = audit.verify(tmp_path)
    assert (found.whole, found.num_entries) == (True, 2)


def test_half_a_line_of_a_killed_writer_is_cut_off(tmp_path: Path) -> None:
    """Nobody was told that it was written."""
    fill(tmp_path, 2)
    with log_path(tmp_path).open("ab") as file:
        file.write(b'{"action":"pau')
    assert audit.verify(tmp_path).whole
    assert len(list(audit.newest_first(tmp_path))) == 2
    assert audit.record(tmp_path, action="pause", actor="ada").number == 3
    assert audit.verify(tmp_path).num_entries == 3


def test_events_that_are_handed_over_again_are_written_once(tmp_path: Path) -> None:
    """Also where the first attempt wrote some of them only, or did not get to the head."""
    events = [Event(action=action, actor="rollout 7", model="m", source="m") for action in ("moved", "promoted")]
    audit.record_events(tmp_path, "m", lambda: events[:1])
    audit.record_events(tmp_path, "m", lambda: events)
    before = head_path(tmp_path).read_bytes()
    others = [Event(action="moved", actor="rollout 1", model="n", source="n")]
    audit.record_events(tmp_path, "n", lambda: others)
    head_path(tmp_path).write_bytes(before)
    audit.record(tmp_path, action="pause", actor="ada", model="m")
    audit.record_events(tmp_path, "n", lambda: others)
    audit.record_events(tmp_path, "m", lambda: events)
    actions = [(entry.model, entry.action) for entry in audit.read_entries(tmp_path)]
    assert actions == [("m", "moved"), ("m", "promoted"), ("n", "moved"), ("m", "pause")]


def test_the_newest_entries_are_found_across_blocks(tmp_path: Path) -> None:
    """However long a line is."""
    for size in (10, 70_000, 10, 200_000, 65_536, 1):
        audit.record(tmp_path, action="promote", actor="ada", reason="ü" * size)
    assert list(audit.newest_first(tmp_path)) == list(audit.read_entries(tmp_path))[::-1]
    assert len(list(audit.newest_first(tmp_path))) == 6


def write_many(home: Path, number: int) -> None:
    for _ in range(number):
        audit.record(home, action="shift", actor=f"process {os.getpid()}")


def test_several_processes_write_one_chain(tmp_path: Path) -> None:
    """None of their entries is lost."""
    processes = [multiprocessing.get_context("fork").Process(target=write_many, args=(tmp_path, 20)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    found = audit.verify(tmp_path)
    assert (found.whole, found.num_entries) == (True, 80)
