"""`slipway logs`: the log of a step's newest job, or of a program of the stack."""

import sys
import time
from pathlib import Path

from pipeline.commands import jobs
from pipeline.commands.output import here
from pipeline.errors import SpecError
from pipeline.stack.layout import Layout

POLL_S = 0.5
PROGRAM_TAIL_BYTES = 64 << 10


def show(what: str, *, follow: bool) -> None:
    """Prints the log; with `follow`, goes on until interrupted."""
    layout, _ = here()
    path, offset = find(layout, what)
    print(f"# {path}", file=sys.stderr)
    offset = _print_from(path, offset)
    while follow:
        time.sleep(POLL_S)
        # A rotated log is shorter than what was read of it.
        offset = _print_from(path, offset if path.stat().st_size >= offset else 0)


def find(layout: Layout, what: str) -> tuple[Path, int]:
    """The log, and where to begin in it.

    Raises:
        SpecError: there is none; the message names those that there are.
    """
    job = jobs.job_of_step(layout, what)
    if job:
        return job.path, job.offset
    for path in (layout.log_path(what), layout.logs_path / f"{what}.jsonl"):
        if path.is_file():
            return path, max(0, path.stat().st_size - PROGRAM_TAIL_BYTES)
    raise SpecError(f"no log of {what!r}. There are: {', '.join(known(layout)) or 'none yet'}")


def known(layout: Layout) -> list[str]:
    """Every step and program that has a log."""
    steps = {job.labels["task_id"] for job in jobs.find_jobs(layout) if "task_id" in job.labels}
    programs = {path.stem for kind in ("*.log", "*.jsonl") for path in layout.logs_path.glob(kind)}
    return sorted(steps) + sorted(programs)


def _print_from(path: Path, offset: int) -> int:
    with path.open("rb") as file:
        file.seek(offset)
        sys.stdout.write(file.read().decode(errors="replace"))
        sys.stdout.flush()
        return file.tell()
