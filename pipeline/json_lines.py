"""Logs for programs: one JSON object a line, with `ts` (RFC 3339, UTC), `level`, `logger`, `message` and what else is
known.
"""

import json
import os
from datetime import UTC, datetime
from pathlib import Path

MAX_BYTES = 16 << 20
"""A file that has grown to this is kept as `<name>.1.jsonl`, and a new one begins."""


def line(logger: str, message: str, *, level: str = "info", **known: object) -> str:
    """One entry without its line break; what is None in `known` is left out.

    Args:
        level: debug, info, warning or error.
        known: model, version, generation, request_id and the like.
    """
    entry = {
        "ts": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "level": level,
        "logger": logger,
        "message": message,
        **{name: value for name, value in known.items() if value is not None},
    }
    return json.dumps(entry, ensure_ascii=False, default=str)


def append(path: Path, text: str) -> None:
    """Adds one line in one write, so that lines of several processes do not mix."""
    if path.exists() and path.stat().st_size > MAX_BYTES:
        path.replace(path.with_suffix(f".1{path.suffix}"))
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(descriptor, (text + "\n").encode())
    finally:
        os.close(descriptor)
