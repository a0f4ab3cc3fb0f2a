"""What a container adds to a step: the same job through the docker backend and the process backend, by turns.

    PYTHONPATH=.:plugins .venvs/control/bin/python tests/bench/container_step.py

Two jobs: a Python that does nothing, and the step `plan` of a small recipe. The time is that from `submit` to being
seen as finished, so it includes making and removing the container; the median of the rounds after the first. Needs a
Docker engine and the image of control (`make images`); without them it says on stderr that it was left out.
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from pipeline import containers, settings
from pipeline.containers import engine_errors
from pipeline.contracts.specs import PlanSpec
from pipeline.errors import SlipwayError
from pipeline.images import image_name
from pipeline.settings import Settings
from slipway_airflow.backends.base import Backend, JobRequest
from slipway_airflow.backends.docker import DockerBackend
from slipway_airflow.backends.process import ProcessBackend
from tests.contracts.backend_conformance import request, whole_log
from tests.integration.docker.release_chain import RECIPE, Chain

ROUNDS = 7
POLL_S = 0.02
JOBS = ("nothing", "plan")


def main() -> None:
    try:
        engine = engine_with_image()
    except SlipwayError as error:
        print(f"container_step was left out: {error}", file=sys.stderr)
        return
    with tempfile.TemporaryDirectory(prefix="slipway-bench-") as folder:
        in_container, as_process = home(Path(folder) / "docker"), home(Path(folder) / "process")
        try:
            times = measure(DockerBackend(in_container), ProcessBackend(as_process))
        finally:
            containers.remove_all(engine, in_container)
    for job in JOBS:
        report(job, *(median(found[job][1:]) for found in times))


def engine_with_image() -> Any:
    """The Docker engine, which has the image.

    Raises:
        SlipwayError: there is none, or it has not.
    """
    name = image_name("control", settings.load())
    engine = containers.connect()
    with engine_errors(f"use the image {name}"):
        engine.images.get(name)
    return engine


def home(path: Path) -> Settings:
    """The user's settings, but for a home and a store of its own."""
    path.mkdir()
    return settings.load().model_copy(update={"home_path": path, "store_uri": (path / "store").as_uri()})


def measure(*backends: DockerBackend | ProcessBackend) -> list[dict[str, list[float]]]:
    """For each backend the seconds of each job, round by round. The first round generates the plan's data."""
    times: list[dict[str, list[float]]] = [{job: [] for job in JOBS} for _ in backends]
    for number in range(ROUNDS + 1):
        for backend, found in zip(backends, times, strict=True):
            plan = PlanSpec(recipe=RECIPE, request_id=f"round-{number}")
            found["nothing"].append(seconds_of(backend, request("pass")))
            found["plan"].append(seconds_of(backend, Chain(backend.settings, backend).request("plan", plan)))
    return times


def seconds_of(backend: Backend, job: JobRequest) -> float:
    started = time.perf_counter()
    backend.submit(job)
    while (state := backend.status(job.job_id).state) == "running":
        time.sleep(POLL_S)
    seconds = time.perf_counter() - started
    if state != "succeeded":
        raise SystemExit(f"job {job.job_id} {state}, expected success:\n{whole_log(backend, job.job_id)}")
    return seconds


def report(job: str, value: float, baseline_value: float) -> None:
    line = {
        "name": f"container step, {job}",
        "value": round(value, 3),
        "unit": "s",
        "baseline": "the same job as a process",
        "baseline_value": round(baseline_value, 3),
        "ratio": round(value / baseline_value, 2),
    }
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
