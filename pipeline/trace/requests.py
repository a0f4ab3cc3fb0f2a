"""Finds one request in the gateway's access logs: the one that is being written, and those that were put aside."""

import json
import mmap
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.contracts.trace import Request
from pipeline.errors import SpecError
from pipeline.stack.layout import Layout

REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
LOGS = "gateway-access*.jsonl"
PATIENCE_S = 1.0
"""Envoy writes its log at intervals of 0.2 s."""
POLL_S = 0.1


def find_request(layout: Layout, request_id: str) -> Request:
    """The request with that id.

    Raises:
        SpecError: that is no id, or no log holds it.
    """
    if not REQUEST_ID.fullmatch(request_id):
        raise SpecError(f"{request_id!r} is no request id; expected the value of an answer's header `x-request-id`")
    give_up_at = time.monotonic() + PATIENCE_S
    paths: list[Path] = []
    while True:
        with suppress(FileNotFoundError):  # a log that is being put aside is another one by then
            paths = log_paths(layout)
            for path in paths:
                found = next(_records(path, request_id), None)
                if found is not None:
                    return as_request(found, path)
        if time.monotonic() > give_up_at:
            break
        time.sleep(POLL_S)
    searched = ", ".join(path.name for path in paths) or "there is none yet"
    raise SpecError(
        f"no request {request_id} in the gateway's access logs in {layout.logs_path} ({searched}); the id is the header"
        " `x-request-id` of an answer, and old logs are removed"
    )


def log_paths(layout: Layout) -> list[Path]:
    """Newest first; an empty one is none."""
    found = [path for path in layout.logs_path.glob(LOGS) if path.stat().st_size]
    return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)


def _records(path: Path, request_id: str) -> Iterator[dict[str, Any]]:
    """The lines about `request_id`, newest first; the log is mapped, since most of it is of other requests."""
    wanted = f'"{request_id}"'.encode()
    if not path.stat().st_size:  # a new one by now, which cannot be mapped
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as log:
        position = log.rfind(wanted)
        while position >= 0:
            start = log.rfind(b"\n", 0, position) + 1
            end = log.find(b"\n", position)
            record = _parsed(log[start : end if end >= 0 else len(log)])
            if record.get("request_id") == request_id:
                yield record
            position = log.rfind(wanted, 0, start) if start else -1


def _parsed(line: bytes) -> dict[str, Any]:
    """Empty for a line that is being written."""
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def as_request(record: dict[str, Any], path: Path) -> Request:
    """A line of the log; Envoy leaves out, or writes `-`, where it has nothing to say."""
    duration_us = _known(record, "duration_us")
    return Request(
        request_id=record["request_id"],
        at=float(record["ts"]),
        status=int(record["code"]),
        duration_ms=None if duration_us is None else float(duration_us) / 1000,
        client=_known(record, "client"),
        path=_known(record, "path"),
        model=_model(record),
        version=_known(record, "version"),
        deployment=_number(record, "generation"),
        upstream=_known(record, "upstream"),
        attempts=_number(record, "attempts"),
        details=_known(record, "details"),
        log_path=str(path),
    )


def _known(record: dict[str, Any], name: str) -> Any:
    value = record.get(name)
    return None if value in (None, "", "-") else value


def _number(record: dict[str, Any], name: str) -> int | None:
    value = _known(record, name)
    return None if value is None else int(value)


def _model(record: dict[str, Any]) -> str | None:
    """A name with a colon is the gateway's word for a request that names none."""
    name = _known(record, "model")
    return None if name is None or ":" in name else str(name)
