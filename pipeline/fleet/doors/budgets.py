"""Tokens that each client has used today, counted from the gateway's access log, and who has used up its budget.

Reads `home/logs/gateway-access.jsonl`, one line a request with the tokens of its prompt and its answer; writes
`home/fleet/doors/usage.json`: the counts, and how far the log has been read, in one file that is replaced as a whole.
So no line is counted twice and none is left out, whenever the program that counts is killed.

A line is written when its answer is complete, or when the client has hung up, then with the tokens that it was sent. A
client is therefore refused a second or so after its budget was used up: what it has under way by then goes beyond it.
"""

import json
import os
import time
from pathlib import Path
from typing import IO, Any

from pydantic import Field

from pipeline.contracts.base import Contract
from pipeline.fleet.doors.keys import KeyRing
from pipeline.stack.layout import Layout, read_json
from pipeline.whole_files import write_atomically

PROMPT, COMPLETION = ("prompt_tokens", "stream_prompt_tokens"), ("completion_tokens", "stream_completion_tokens")
"""Fields of the log: of whole answers, and of streams."""
MAX_READ_BYTES = 16 << 20
"""In one round, so that a long log is read in several."""


class Usage(Contract):
    """What was counted of one day."""

    day: str = ""
    """In UTC, as 2026-11-21."""
    tokens: dict[str, int] = Field(default_factory=dict)
    """By client: of prompts and answers."""
    inode: int = 0
    offset: int = 0
    """How far the log with this inode has been read, in bytes."""

    def of(self, day: str) -> dict[str, int]:
        """The counts of `day`."""
        return self.tokens if self.day == day else {}


def today(now: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(now))


def usage_path(layout: Layout) -> Path:
    return layout.fleet_path / "doors" / "usage.json"


def read_usage(layout: Layout) -> Usage:
    """What was counted; nothing if nobody counted yet.

    Raises:
        SpecError: the file is damaged.
    """
    path = usage_path(layout)
    return read_json(path, Usage) if path.exists() else Usage()


def exhausted(ring: KeyRing, usage: Usage, now: float) -> frozenset[str]:
    """Clients that have used up today's budget."""
    used = usage.of(today(now))
    return frozenset(
        key.name for key in ring.keys if key.tokens_per_day is not None and used.get(key.name, 0) >= key.tokens_per_day
    )


def count(layout: Layout, log_path: Path, now: float) -> Usage:
    """Reads what is new in the log and keeps the counts. One process at a time may do so."""
    usage = read_usage(layout)
    day = today(now)
    has_begun = log_path.exists()  # once a new log is there, nobody writes to the one before any more
    found, rest = usage, _read(log_path.with_suffix(".1.jsonl"), usage, day, is_current=False)
    while rest != found:  # the log before is read to its end first
        found, rest = rest, _read(log_path.with_suffix(".1.jsonl"), rest, day, is_current=False)
    if has_begun:
        found = _read(log_path, found, day, is_current=True)
    if found != usage:
        usage_path(layout).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(usage_path(layout), found.model_dump_json())
    return found


def _read(path: Path, usage: Usage, day: str, *, is_current: bool) -> Usage:
    """Goes on in `path`: where it was left, or, in the current log, at the beginning of a new one."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            known = status.st_ino == usage.inode and usage.offset <= status.st_size
            if not known and not is_current:
                return usage
            inode, offset = status.st_ino, usage.offset if known else 0
            lines, end = _lines(file, offset)
    except FileNotFoundError:
        return usage
    tokens = dict(usage.of(day))
    for line in lines:
        client, used = _counted(line, day)
        if used:
            tokens[client] = tokens.get(client, 0) + used
    return Usage(day=day, tokens=tokens, inode=inode, offset=end)


def _lines(file: IO[bytes], offset: int) -> tuple[list[bytes], int]:
    """Whole lines from `offset` on, and where they end."""
    file.seek(offset)
    text = file.read(MAX_READ_BYTES)
    whole = text[: text.rfind(b"\n") + 1]
    return whole.splitlines(), offset + len(whole)


def _counted(line: bytes, day: str) -> tuple[str, int]:
    """A request's client and its tokens; 0 if it was another day's, or no completion."""
    try:
        entry: dict[str, Any] = json.loads(line)
        if today(float(entry["ts"])) != day:
            return "", 0
        return str(entry["client"]), sum(_number(entry, fields) for fields in (PROMPT, COMPLETION))
    except (ValueError, KeyError, TypeError):
        return "", 0


def _number(entry: dict[str, Any], fields: tuple[str, ...]) -> int:
    """The first of `fields` that has a number. Envoy writes numbers out of metadata as 12.0, and null for none."""
    return next((int(float(entry[field])) for field in fields if entry.get(field) not in (None, "", "-")), 0)
