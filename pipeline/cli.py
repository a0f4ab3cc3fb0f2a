"""Runs one step: reads its spec, runs it, publishes its artifact, and turns errors into exit codes.

    python -m pipeline STEP --spec SPEC.json --out STORE/STEP/KEY

Exit codes: 0 done (or found finished); 64 bad spec; 65 bad data, or a gate refused; 75 transient; 143 ended by
SIGTERM, its children with it; anything else is a bug.
"""

import argparse
import importlib
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from pipeline import artifacts, settings
from pipeline.contracts.base import Result, Spec, progress_key, step_key
from pipeline.contracts.manifest import Manifest
from pipeline.contracts.specs import STEPS
from pipeline.errors import (
    EXIT_DONE,
    EXIT_TRANSIENT,
    DataError,
    IntegrityError,
    SlipwayError,
    SpecError,
    is_transient,
)
from pipeline.job import Job
from pipeline.processes import children_end_with_us
from pipeline.provenance import draft_manifest


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step", choices=sorted(STEPS), help="which step to run")
    parser.add_argument("--spec", type=Path, required=True, help="a JSON file with the step's spec")
    parser.add_argument("--out", required=True, help="the artifact's URI: STORE/STEP/KEY")
    try:
        options = parser.parse_args(arguments)
    except SystemExit as end:  # argparse says 2, which a backend would take for a bug
        return SpecError.exit_code if end.code else EXIT_DONE
    try:
        with children_end_with_us():
            run_step(options.step, options.spec, options.out)
    except SlipwayError as error:
        return _failed(error, error.exit_code)
    except OSError as error:
        if not is_transient(error):
            raise
        return _failed(error, EXIT_TRANSIENT)
    return EXIT_DONE


def run_step(step: str, spec_path: Path, out_uri: str) -> None:
    """Runs `step` unless its artifact exists already."""
    spec = read_spec(step, spec_path)
    key = step_key(step, STEPS[step].version, spec)
    if not out_uri.endswith(f"/{step}/{key}"):
        raise SpecError(f"--out is {out_uri}, but this spec's artifact belongs at STORE/{step}/{key}")
    progress = progress_key(step, STEPS[step].version, spec)
    job = Job(step=step, key=key, out_uri=out_uri, settings=settings.load(), progress_key=progress)
    if _was_finished(job):
        return
    with job.exclusive():
        if _was_finished(job):  # by the job for which we have waited
            return
        try:
            published = _run_and_publish(spec, job)
        except (SpecError, DataError) as error:
            if job.is_first_node:
                job.clear_work()  # the same spec can only fail again: nothing to resume
                if not isinstance(error, SpecError | IntegrityError):
                    # Otherwise a person corrects the place or the key, or removes what is damaged, and goes on.
                    job.clear_checkpoints()
            raise
    if published:
        print(f"published {out_uri} digest {published.digest} ({published.duration_s:.1f} s)", flush=True)


def read_spec(step: str, path: Path) -> Spec:
    try:
        return STEPS[step].spec.model_validate_json(path.read_bytes())
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise SpecError(f"cannot read the spec {path}: {error.strerror}") from error
    except ValidationError as error:
        raise SpecError(f"{path} is no {STEPS[step].spec.__name__}: {error}") from error


def _was_finished(job: Job) -> bool:
    finished = artifacts.find_manifest(job.out_uri)
    if finished is None:
        return False
    job.say(f"reused {job.out_uri} (finished {finished.started_at}, took {finished.duration_s:.1f} s)")
    return True


def _run_and_publish(spec: Spec, job: Job) -> Manifest | None:
    """None on nodes that leave the publishing to another."""
    job.work_path.mkdir(parents=True, exist_ok=True)
    job.clear_staging()
    started_at, started = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
    result: Result | None = importlib.import_module(f"pipeline.steps.{job.step}").run(spec, job)
    if result is None and job.settings.nodes > 1:
        return None
    if not isinstance(result, STEPS[job.step].result):
        raise TypeError(f"{job.step} returned {type(result).__name__}, expected {STEPS[job.step].result.__name__}")
    draft = draft_manifest(job, spec, result, started_at=started_at, duration_s=time.monotonic() - started)
    published = artifacts.publish(job.out_uri, job.staging_path, draft)
    job.clear_work()
    job.clear_checkpoints()
    return published


def _failed(error: Exception, exit_code: int) -> int:
    print(f"error {exit_code} {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    return exit_code
