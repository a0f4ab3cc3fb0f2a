"""The gateway's access log from one moment on, read piece by piece."""

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any


@dataclass
class AccessLog:
    """The answers that clients got from one model, by the deployment (its generation) that gave them.

    Each line is read once. Where a new log has been started, the one before is read to its end first.
    """

    path: Path
    model: str
    without: str
    """This client's requests are left out."""
    offset: int = 0
    inode: int = 0
    num_requests: dict[str, int] = field(default_factory=dict)
    """Answers of whatever status."""
    durations_s: dict[str, list[float]] = field(default_factory=dict)
    """From the request's first byte to the answer's last, of answers with status 200."""
    first_bytes_s: dict[str, list[float]] = field(default_factory=dict)
    """From the request's first byte to the answer's first, of streamed answers with status 200."""

    @classmethod
    def from_now(cls, path: Path, model: str, *, without: str) -> "AccessLog":
        found = path.stat() if path.exists() else None
        return cls(path, model, without, offset=found.st_size if found else 0, inode=found.st_ino if found else 0)

    def read(self) -> None:
        """Takes in what was written since."""
        for line in self.lines():
            generation = line.get("generation")
            if line.get("model") != self.model or not generation or line.get("client") == self.without:
                continue
            self.num_requests[generation] = self.num_requests.get(generation, 0) + 1
            if line.get("code") != 200:
                continue
            # A stream that broke, or whose client went away, has no end, and Envoy writes null.
            if line.get("duration_us") is not None:
                self.durations_s.setdefault(generation, []).append(line["duration_us"] / 1e6)
            if line.get("first_byte_us") is not None and _is_stream(line):
                self.first_bytes_s.setdefault(generation, []).append(line["first_byte_us"] / 1e6)

    def forget(self) -> None:
        """What was taken in so far: for a reader that has made use of it."""
        self.num_requests, self.durations_s, self.first_bytes_s = {}, {}, {}

    def lines(self) -> Iterator[dict[str, Any]]:
        """Each line once, as soon as it is whole: one that is still being written is left for later."""
        try:
            file = self.path.open("rb")
        except FileNotFoundError:  # nobody was answered yet, or a new one is about to be started
            return
        with file:
            inode = os.fstat(file.fileno()).st_ino
            if self.inode not in (0, inode):
                yield from self._rest()
                self.offset = 0
            self.inode = inode
            yield from self._new(file)

    def _rest(self) -> Iterator[dict[str, Any]]:
        """Of the log before, which nobody writes to once there is a new one."""
        with suppress(FileNotFoundError), self.path.with_suffix(".1.jsonl").open("rb") as file:
            if os.fstat(file.fileno()).st_ino == self.inode:
                yield from self._new(file)

    def _new(self, file: IO[bytes]) -> Iterator[dict[str, Any]]:
        file.seek(self.offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            self.offset += len(line)
            try:
                found = json.loads(line)
            except ValueError:  # two halves: a gateway was killed as it wrote, and the next one went on behind it
                continue
            yield found


def _is_stream(line: dict[str, Any]) -> bool:
    return str(line.get("content_type") or "").startswith("text/event-stream")
