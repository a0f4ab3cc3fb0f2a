"""Runs one step: reads its spec, runs it, publishes its artifact, and turns errors into exit codes.

    python -m pipeline STEP --spec SPEC.json --out STORE/STEP/KEY

Exit codes: 0 done (or found finished); 64 bad spec; 65 bad data, or a gate refused; 75 transient; else a bug.
"""

import argparse
import hashlib
import importlib
import shutil
import sys
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from pydantic import ValidationError

from pipeline import __version__, artifacts, settings
from pipeline.artifacts.digests import file_entries
from pipeline.artifacts.transfer import content_root
from pipeline.contracts.base import Content, Result, Spec, step_key
from pipeline.contracts.manifest import Manifest, manifest_digest
from pipeline.contracts.specs import STEPS
from pipeline.errors import EXIT_DONE, EXIT_TRANSIENT, SlipwayError, SpecError
from pipeline.job import Job


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step", choices=sorted(STEPS), help="which step to run")
    parser.add_argument("--spec", type=Path, required=True, help="a JSON file with the step's spec")
    parser.add_argument("--out", required=True, help="the artifact's URI: STORE/STEP/KEY")
    options = parser.parse_args(arguments)
    try:
        run_step(options.step, options.spec, options.out)
    except SlipwayError as error:
        print(f"error {error.exit_code} {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except (ConnectionError, TimeoutError, OSError) as error:
        print(f"error {EXIT_TRANSIENT} {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return EXIT_TRANSIENT
    return EXIT_DONE


def run_step(step: str, spec_path: Path, out_uri: str) -> None:
    """Runs `step` unless its artifact exists already."""
    spec = read_spec(step, spec_path)
    key = step_key(step, STEPS[step].version, spec)
    if not out_uri.rstrip("/").endswith(f"/{step}/{key}"):
        raise SpecError(f"--out is {out_uri}, but this spec's artifact belongs at STORE/{step}/{key}")
    finished = artifacts.find_manifest(out_uri)
    if finished:
        print(f"reused {out_uri} (finished {finished.started_at}, took {finished.duration_s:.1f} s)", flush=True)
        return
    job = Job(step=step, key=key, out_uri=out_uri, settings=settings.load())
    if job.is_first_node:
        shutil.rmtree(job.staging_path, ignore_errors=True)
    job.staging_path.mkdir(parents=True, exist_ok=True)
    started_at, started = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
    result: Result | None = importlib.import_module(f"pipeline.steps.{step}").run(spec, job)
    if not job.is_first_node:
        return
    if not isinstance(result, STEPS[step].result):
        raise TypeError(f"{step} returned {type(result).__name__}, expected {STEPS[step].result.__name__}")
    manifest = draft_manifest(job, spec, result, started_at=started_at, duration_s=time.monotonic() - started)
    published = artifacts.publish(out_uri, job.staging_path, manifest)
    shutil.rmtree(job.work_path, ignore_errors=True)
    print(f"published {out_uri} digest {published.digest} ({published.duration_s:.1f} s)", flush=True)


def read_spec(step: str, path: Path) -> Spec:
    try:
        return STEPS[step].spec.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise SpecError(f"no spec at {path}") from error
    except ValidationError as error:
        raise SpecError(f"{path} is no {STEPS[step].spec.__name__}: {error}") from error


def draft_manifest(job: Job, spec: Spec, result: Result, *, started_at: str, duration_s: float) -> Manifest:
    (job.staging_path / "result.json").write_text(result.model_dump_json(indent=2) + "\n")
    files = file_entries(job.staging_path)
    dumped = result.model_dump(mode="json")
    return Manifest(
        step=job.step,
        key=job.key,
        digest=manifest_digest(job.step, job.key, files, dumped),
        root=content_root(files),
        files=files,
        spec=spec.model_dump(mode="json"),
        result=dumped,
        inputs=tuple(sorted(_digests(spec))),
        code_version=__version__,
        environment_digest=environment_digest(),
        seeds=job.seeds,
        started_at=started_at,
        duration_s=round(duration_s, 3),
        figures=job.figures,
    )


def environment_digest() -> str:
    """Over the names and versions of every installed package."""
    installed = sorted({f"{dist.name.lower()}=={dist.version}" for dist in metadata.distributions()})
    return hashlib.sha256("\n".join(installed).encode()).hexdigest()


def _digests(value: object) -> set[str]:
    if isinstance(value, Content):
        return {value.digest}
    if hasattr(type(value), "model_fields"):
        return set().union(*(_digests(getattr(value, name)) for name in type(value).model_fields), set())  # type: ignore[attr-defined]
    return set().union(*(_digests(item) for item in value)) if isinstance(value, tuple) else set()
