"""`slipway doctor`: looks at the machine, the environments and the stack, and says what to do about what is wrong."""

import hashlib
import json
import platform
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil

from pipeline.commands.output import console, here, local_only
from pipeline.contracts.base import Contract
from pipeline.errors import SlipwayError, SpecError
from pipeline.fleet import alive, exporter
from pipeline.settings import ROOT, Settings
from pipeline.stack import airflow_part, bring_up, jobs_part, loopback, mlflow_part, postgres_part, processes
from pipeline.stack.layout import Layout
from pipeline.stack.supervisor import Supervisor

NEEDED_DISK_BYTES = 3 << 30
NEEDED_MEMORY_BYTES = 6 << 30
"""Airflow and MLflow take 2 GB, two replicas 3 GB, a training step 1 GB."""
ENVIRONMENTS = ("control", "model", "serve")


class Finding(Contract):
    """One thing that was looked at."""

    what: str
    ok: bool
    seen: str
    advice: str = ""


def examine() -> int:
    """Prints the findings.

    Returns:
        0 if all is well, 1 if not.
    """
    local_only("doctor", instead="docker compose ps")
    layout, configured = here()
    findings = [*machine(layout, configured), *environments(configured), *engine(layout, configured), *stack(layout)]
    for finding in findings:
        mark = "[green]✓[/green]" if finding.ok else "[red]✗[/red]"
        console.print(f"{mark} {finding.what}: {finding.seen}", soft_wrap=True)
        if not finding.ok and finding.advice:
            console.print(f"    → {finding.advice}", soft_wrap=True)
    return 0 if all(finding.ok for finding in findings) else 1


def machine(layout: Layout, configured: Settings) -> list[Finding]:
    """Python, memory, disk, loopback, uv. A compiler is not looked for, since nothing is compiled."""
    uv = shutil.which("uv") or shutil.which("uv", path=str(configured.venvs_path / "uv" / "bin"))
    existing = next(path for path in (layout.home_path, *layout.home_path.parents) if path.exists())
    free, memory = shutil.disk_usage(existing).free, psutil.virtual_memory().available
    return [
        Finding(
            what="machine",
            ok=platform.system() == "Linux" and platform.machine() == "x86_64",
            seen=f"{platform.system()} {platform.machine()}, {psutil.cpu_count()} cores",
            advice="the pinned packages are built for Linux on x86-64",
        ),
        Finding(
            what="Python",
            ok=platform.python_version_tuple()[:2] == ("3", "11"),
            seen=platform.python_version(),
            advice="remove .venvs and run `make setup PYTHON=/path/to/python3.11`",
        ),
        Finding(
            what="uv", ok=uv is not None, seen=uv or "not found", advice="`make setup` installs it when it is needed"
        ),
        Finding(
            what="disk",
            ok=free >= NEEDED_DISK_BYTES,
            seen=f"{free / 2**30:.1f} GiB free at {existing}",
            advice=f"a release needs {NEEDED_DISK_BYTES >> 30} GiB: free some, or set SLIPWAY_HOME elsewhere",
        ),
        Finding(
            what="memory",
            ok=memory >= NEEDED_MEMORY_BYTES or bool(processes.owned(layout)),
            seen=f"{memory / 2**30:.1f} GiB available",
            advice=f"the stack with two replicas needs {NEEDED_MEMORY_BYTES >> 30} GiB: end other programs",
        ),
        _loopback(),
        _unprivileged(layout),
    ]


def environments(configured: Settings) -> list[Finding]:
    """Whether each environment was made from the list that is in infra/requirements now."""
    return [_environment(configured.venvs_path / name, name) for name in ENVIRONMENTS]


def engine(layout: Layout, configured: Settings) -> list[Finding]:
    """Docker, where steps run as containers."""
    if "docker" not in (jobs_part.place_of(layout).backend, configured.backend):
        return []
    try:
        missing = jobs_part.missing_images(configured)
    except SlipwayError as error:
        return [
            Finding(what="Docker", ok=False, seen=str(error), advice="start it, or `./slipway up --backend process`")
        ]
    seen = f"missing: {', '.join(missing)}" if missing else f"answers, images of {configured.image_tag} are there"
    return [Finding(what="Docker", ok=not missing, seen=seen, advice="run `make images`")]


def stack(layout: Layout) -> list[Finding]:
    """Whether each part answers; one finding only if the stack is down."""
    if not layout.stack_path.exists():
        return [Finding(what="stack", ok=True, seen=f"never started in {layout.home_path}")]
    if not processes.owned(layout):
        return [Finding(what="stack", ok=True, seen="down"), _ports(layout)]
    admin = f"{layout.ports().url('gateway_admin')}/ready"
    checks: dict[str, Callable[[], bool]] = {
        "postgres": lambda: postgres_part.is_ready(layout),
        "mlflow": lambda: mlflow_part.is_healthy(layout),
        "airflow": lambda: not airflow_part.unhealthy(layout, Supervisor(layout.home_path)),
        "gateway": lambda: loopback.answers(admin),
        "metrics": lambda: loopback.answers(exporter.url(layout)),
        **{name: partial(_is_alive, layout, name) for name in alive.FILES},
    }
    return [
        Finding(
            what=name,
            ok=(ok := check()),
            seen="answers" if ok else "does not answer",
            advice=f"`./slipway up` repairs it; `./slipway logs {'airflow-scheduler' if name == 'airflow' else name}`",
        )
        for name, check in checks.items()
    ]


def _is_alive(layout: Layout, program: str) -> bool:
    return time.time() - alive.last_seen(layout.fleet_path).get(program, 0.0) < alive.MAX_SILENCE_S


def _environment(path: Path, name: str) -> Finding:
    stamp = path / "slipway-setup.json"
    locks = [ROOT / "infra" / "requirements" / f"{name}.txt"]
    if name == "serve":
        locks.append(ROOT / "infra" / "requirements" / "vllm-alias" / "pyproject.toml")
    wanted = hashlib.sha256(b"\0".join(lock.read_bytes() for lock in locks)).hexdigest()
    found = json.loads(stamp.read_text()).get("lock") if stamp.exists() else None
    seen = "as listed" if found == wanted else "made from another list" if found else f"missing or unfinished at {path}"
    return Finding(what=f"environment {name}", ok=found == wanted, seen=seen, advice="run `make setup`")


def _loopback() -> Finding:
    try:
        with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname(), 2):
            return Finding(what="loopback", ok=True, seen="127.0.0.1 works")
    except OSError as error:
        return Finding(what="loopback", ok=False, seen=str(error), advice="bring up the interface `lo`")


def _unprivileged(layout: Layout) -> Finding:
    """Started by root, PostgreSQL runs as another user, with a capability that a container may have taken away."""
    user = postgres_part.run_as()
    if user is None:
        return Finding(what="PostgreSQL's user", ok=True, seen="yours")
    from pipeline.stack.launch import as_user

    done = subprocess.run(as_user(user, ["true"]), capture_output=True, text=True) if shutil.which("setpriv") else None
    ok = done is not None and done.returncode == 0
    seen = user if ok else done.stderr.strip() if done else "setpriv is not installed"
    advice = "run as another user than root, or give the container the capability DAC_OVERRIDE and util-linux"
    return Finding(what="PostgreSQL's user", ok=ok, seen=seen, advice=advice)


def _ports(layout: Layout) -> Finding:
    try:
        bring_up.check_ports(layout.ports(), set())
    except SpecError as error:
        return Finding(what="ports", ok=False, seen=str(error))
    return Finding(what="ports", ok=True, seen="free")
