"""What the jobs of this machine say about themselves: their logs and the progress lines in them."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.stack.layout import Layout

TAIL_BYTES = 16_384
NO_NEWS = re.compile(
    r"""^\s|^\[?[WIE]\d{4}\ \d|^\d{4}-\d\d-\d\d|^\[?\(?(DEBUG|INFO|WARNING|ERROR|rank|EngineCore|Worker|Gloo)\b
    |warning|\d+%\||^published\ |^mlflow\ run\ |^error\ \d""",
    re.IGNORECASE | re.VERBOSE,
)
"""What libraries write to the log, and what the job says for the record."""
ERROR_LINE = re.compile(r"^error \d+ \w+: ")


@dataclass(frozen=True)
class JobLog:
    """The newest attempt of one job."""

    path: Path
    offset: int
    labels: dict[str, str]
    submitted_at: float

    def tail(self) -> list[str]:
        """The attempt's last lines."""
        with self.path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(self.offset, size - TAIL_BYTES))
            return file.read().decode(errors="replace").splitlines()

    def progress(self) -> str:
        """The last progress line, or else the last that the step itself said; "" if there is none."""
        lines = [line for line in self.tail() if line.strip() and not NO_NEWS.search(line)]
        found = next((line for line in reversed(lines) if line.startswith("progress ")), "")
        return found.removeprefix("progress ") or (lines[-1] if lines else "")

    def error(self) -> str:
        """The line that says why the job failed, or else its last line."""
        lines = [line for line in self.tail() if line.strip()]
        return next((line for line in reversed(lines) if ERROR_LINE.match(line)), lines[-1] if lines else "")


def find_jobs(layout: Layout) -> list[JobLog]:
    """Every job that has a log, the newest first."""
    jobs = [_read(path) for path in layout.jobs_path.glob("*/request.json")]
    return sorted((job for job in jobs if job), key=lambda job: job.submitted_at, reverse=True)


def job_of_task(layout: Layout, run_id: str, task_id: str, map_index: int = -1) -> JobLog | None:
    """The newest job that a task of a run submitted, or an instance of a mapped task."""
    wanted = {"run_id": run_id, "task_id": task_id, "map_index": str(map_index)}
    return next((job for job in find_jobs(layout) if wanted.items() <= job.labels.items()), None)


def job_of_step(layout: Layout, step: str) -> JobLog | None:
    """The newest job of a step, named by the task or the step."""
    return next((job for job in find_jobs(layout) if step in (job.labels.get("task_id"), job.labels.get("step"))), None)


def _read(path: Path) -> JobLog | None:
    log_path = path.with_name("log")
    if not log_path.exists():
        return None
    try:
        request: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:  # cleared away meanwhile
        return None
    return JobLog(log_path, request["log_offset"], request["labels"], request["submitted_at"])
