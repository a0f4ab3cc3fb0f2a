"""Parts that a machine may lack, and what that means for the tests that need them.

    @pytest.mark.needs("radosgw")

A test whose part is missing is left out, and the summary's last lines say which, why, and how to install it. Where
`SLIPWAY_TEST_REQUIRE` (a comma-separated list, set by the CI) names the part, its absence fails the run instead.
`SLIPWAY_TEST_DATA` is the folder of the real data sets: banking77-train.jsonl and so on.
"""

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

BASE_IMAGE = "python:3.11-slim-bookworm"
USER_SETTINGS = (
    "MLFLOW_TRACKING_URI",
    "SLIPWAY_AGENT",
    "SLIPWAY_BACKEND",
    "SLIPWAY_JOB_ID",
    "SLIPWAY_NODES",
    "SLIPWAY_NODE_RANK",
    "SLIPWAY_RELEASE",
    "SLIPWAY_RENDEZVOUS",
    "SLIPWAY_S3_ENDPOINT",
    "SLIPWAY_STORE",
)
"""Taken out of the environment, so that a developer's own servers see nothing of the tests."""


@dataclass(frozen=True)
class Part:
    """Something outside the Python environments that tests use where it is."""

    is_here: Callable[[], bool]
    missing: str
    """Why not, and what to do."""


def _has_programs(*names: str) -> bool:
    return all(shutil.which(name) for name in names)


def _has_chromium() -> bool:
    if any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))):
        return True
    browsers = Path(os.environ.get("PLAYWRIGHT_BROWSERS_PATH") or Path.home() / ".cache" / "ms-playwright")
    return any(browsers.glob("chromium*"))


def _has_data() -> bool:
    folder = os.environ.get("SLIPWAY_TEST_DATA")
    return bool(folder) and (Path(folder or "") / "banking77-train.jsonl").is_file()


@cache
def _has_docker() -> bool:
    """An engine that answers, and holds the image from which ours are built: tests download nothing."""
    if not _has_programs("docker"):
        return False
    command = ["docker", "image", "inspect", BASE_IMAGE]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@cache
def _may_mount() -> bool:
    """In a namespace of its own; distributions differ in who may make one."""
    command = ["unshare", "--mount", "--map-root-user", "true"]
    return _has_programs("unshare") and subprocess.run(command, capture_output=True, check=False).returncode == 0


@cache
def _has_networks() -> bool:
    """Of its own making, with hosts and cables; not every kernel lets root make them."""
    name = f"slw-probe-{os.getpid()}"
    if (
        not _has_programs("ip")
        or subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode
    ):
        return False
    made = subprocess.run(
        ["ip", "-n", name, "link", "add", "probe", "type", "bridge"], capture_output=True, check=False
    )
    subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return made.returncode == 0


PARTS = {
    "radosgw": Part(
        lambda: _has_programs("radosgw", "ceph-mon", "ceph-osd", "ceph", "radosgw-admin"),
        "radosgw is not installed (apt install --no-install-recommends radosgw ceph-mon ceph-osd ceph-common)",
    ),
    "chromium": Part(_has_chromium, "chromium is not installed (apt install chromium)"),
    "docker": Part(_has_docker, f"Docker is not there, or not the image {BASE_IMAGE} (docker pull {BASE_IMAGE})"),
    "prometheus": Part(
        lambda: _has_programs("prometheus", "promtool"),
        "prometheus is not installed (apt install --no-install-recommends prometheus)",
    ),
    "mounts": Part(_may_mount, "this user may not mount in a namespace (`unshare --mount --map-root-user true` fails)"),
    "netns": Part(_has_networks, "this user may not make network namespaces and bridges (`ip netns add` as root)"),
    "data": Part(_has_data, "SLIPWAY_TEST_DATA names no folder with banking77-train.jsonl"),
}

left_out: dict[str, list[str]] = {}
"""Missing part to the tests that were left out for it."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", f"needs(part): left out where the part is missing; one of {', '.join(PARTS)}")
    for name in USER_SETTINGS:
        os.environ.pop(name, None)
    # The environments for training and serving have no Hypothesis.
    if importlib.util.find_spec("hypothesis"):
        _give_hypothesis_time()


def _give_hypothesis_time() -> None:
    """Its limits on how long an example takes say more about a busy machine than about the code."""
    from hypothesis import HealthCheck, settings

    settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("patient")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    required = {name for name in os.environ.get("SLIPWAY_TEST_REQUIRE", "").split(",") if name}
    if unknown := required - PARTS.keys():
        raise pytest.UsageError(f"SLIPWAY_TEST_REQUIRE names {sorted(unknown)}, expected some of {sorted(PARTS)}")
    kept = []
    for item in items:
        missing = _missing_part(item)
        if missing in required:
            raise pytest.UsageError(f"SLIPWAY_TEST_REQUIRE demands {missing}, but {PARTS[missing].missing}")
        if missing:
            left_out.setdefault(missing, []).append(item.nodeid)
        else:
            kept.append(item)
    if len(kept) < len(items):
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept


def _missing_part(item: pytest.Item) -> str:
    for mark in item.iter_markers("needs"):
        for name in mark.args:
            if name not in PARTS:
                raise pytest.UsageError(f"{item.nodeid} needs {name!r}, expected one of {sorted(PARTS)}")
            if not PARTS[name].is_here():
                return str(name)
    return ""


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hands what a worker of pytest-xdist left out to the process that prints the summary."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = left_out


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: object) -> None:
    left_out.update(getattr(node, "workeroutput", {}).get("left_out", {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for name, tests in sorted(left_out.items()):
        terminalreporter.write_sep("-", f"left out because {PARTS[name].missing}", yellow=True)
        for test in sorted(tests):
            terminalreporter.write_line(f"left out: {test}")


@pytest.fixture(scope="session")
def real_data_path() -> Path:
    """The folder of the real data sets; tests that use it are marked `needs("data")`."""
    return Path(os.environ["SLIPWAY_TEST_DATA"])
