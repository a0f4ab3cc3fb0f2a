"""Files that are only ever there as a whole: whoever reads one sees what it was before a change, or after it."""

import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


def write_atomically(path: Path, text: str, mode: int = 0o600) -> None:
    """Replaces `path` in one move, flushed to disk first. Unless `mode` says otherwise, only the owner may read it."""
    _fresh(path, text, mode).replace(path)


def made_once(path: Path, text: Callable[[], str]) -> str:
    """What `path` holds, which is made by whoever comes first, readable by the owner alone; the others read it."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        fresh = _fresh(path, text(), 0o600)
        with suppress(FileExistsError):
            os.link(fresh, path)
        fresh.unlink()
    return path.read_text()


def _fresh(path: Path, text: str, mode: int) -> Path:
    """A file beside `path` that holds `text`."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fchmod(file.fileno(), mode)
        os.fsync(file.fileno())
    return fresh
