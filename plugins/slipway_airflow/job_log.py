"""Following a job's log, and finding in it why the job failed."""

import re
from collections.abc import Iterator

from slipway_airflow.backends.base import Backend

ERROR = re.compile(r"^(?:\[node \d+\] )?error \d+ (?P<message>.*)$")
"""What `python -m pipeline` and the runner print before they fail."""
MAX_MESSAGE_LINES = 20


class JobLog:
    """Reads a job's log from an offset on, and remembers the last error in it, with the lines that belong to it."""

    def __init__(self, backend: Backend, job_id: str, offset: int, error: str = "") -> None:
        self.backend = backend
        self.job_id = job_id
        self.offset = offset
        self.error = error

    def read(self) -> list[str]:
        """The lines that have come since, at most about 64 KiB of them."""
        text, self.offset = self.backend.logs(self.job_id, self.offset)
        lines = text.splitlines()
        for line in lines:
            self._look_at(line)
        return lines

    def rest(self) -> Iterator[str]:
        """All lines up to the end."""
        while lines := self.read():
            yield from lines

    def _look_at(self, line: str) -> None:
        if found := ERROR.match(line):
            self.error = found["message"]
        elif self.error and self.error.count("\n") < MAX_MESSAGE_LINES:
            self.error += f"\n{line}"
