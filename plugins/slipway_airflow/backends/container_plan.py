"""What the containers of a job are given: mounts, variables, limits, networks. It starts nothing.

A step sees the store, its scratch, the cache, the locks and its own job's folder, at the same paths as outside, so that
file:// URIs stay true; and read-only what its spec names elsewhere, or, where the home is a volume, the home's `data`
and `recipes`. A rollout drives the fleet: on this machine it sees the home, in a volume the gateway's folders of it.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from docker.types import LogConfig, Mount

from pipeline.containers import (
    BRIDGE,
    HOME_LABEL,
    JOB_LABEL,
    RANK_LABEL,
    compose_labels,
    home_label,
    job_name,
    node_name,
)
from pipeline.errors import SpecError
from pipeline.settings import ROOT, SIGNING_KEY, Settings, job_secrets
from pipeline.stack.layout import Layout
from slipway_airflow.backends.base import JobRequest
from slipway_airflow.backends.job_folders import JobFolder

FLEET_STEP = "rollout"
SIGNING_STEP = "register"
AUDITED_STEPS = ("promote", FLEET_STEP)
"""What moves an alias or traffic, and says so in the audit log."""
HOST = "host"
GB = 10**9
STEP_ARGUMENTS = ("-m", "pipeline")


@dataclass(frozen=True)
class ContainerPlan:
    """How to run one job."""

    settings: Settings
    request: JobRequest
    job: JobFolder
    image: str
    """As `name@sha256:id`."""
    more_mounts: tuple[Path, ...] = ()

    @property
    def drives_fleet(self) -> bool:
        """By what it runs, which nobody can claim to run without running it."""
        return self.request.arguments[:3] == (*STEP_ARGUMENTS, FLEET_STEP)

    @property
    def signs_bundles(self) -> bool:
        return self.request.arguments[:3] == (*STEP_ARGUMENTS, SIGNING_STEP)

    @property
    def is_audited(self) -> bool:
        return self.request.arguments[:3] in [(*STEP_ARGUMENTS, step) for step in AUDITED_STEPS]

    def secrets(self) -> dict[str, str]:
        """Variables that the program gets and `docker inspect` does not show; the signing key for one step alone."""
        path = Layout(self.settings.home_path).signing_key_path
        key = self.settings.signing_key or (path.read_text() if self.signs_bundles and path.exists() else None)
        return {**job_secrets(), **({SIGNING_KEY: key} if key and self.signs_bundles else {})}

    @property
    def drives_this_machine(self) -> bool:
        """The replicas are processes of this machine: see docs/adr/0094."""
        return self.drives_fleet and self.settings.docker_fleet_network is None

    @property
    def network(self) -> str | None:
        """The job's own network, made for it and removed with it; None for a job of one node."""
        return job_name(self.settings, self.job.job_id) if self.request.nodes > 1 else None

    @property
    def networks(self) -> list[str]:
        """Of each container; the first is the one that it is created in."""
        shared = self.settings.docker_network
        if self.drives_fleet:
            fleet = self.settings.docker_fleet_network
            return [fleet, *([shared] if shared else [])] if fleet else [HOST]
        if self.network:
            return [self.network, *([shared] if shared else [])]
        return [shared or BRIDGE]

    def labels(self, rank: int) -> dict[str, str]:
        people = {f"slipway.{name}": value for name, value in self.request.labels.items()}
        own = {HOME_LABEL: home_label(self.settings), JOB_LABEL: self.job.job_id, RANK_LABEL: str(rank)}
        composed = compose_labels(self.settings.docker_project, "step") if self.settings.docker_volume else {}
        return {**people, **own, **composed}

    def options(self, rank: int) -> dict[str, Any]:
        """The arguments of docker-py's `containers.create` for one node."""
        name = node_name(self.settings, self.job.job_id, rank)
        options: dict[str, Any] = {
            "image": self.image.partition("@")[2],
            "command": ["python", "-I", "-S", "-B", str(self.job.path / "runner"), str(self.job.path), str(rank)],
            "name": name,
            "labels": self.labels(rank),
            "environment": self.variables(),
            "user": owner(self.settings.home_path),
            "read_only": True,
            "tmpfs": {"/tmp": "mode=1777"},
            "cap_drop": ["ALL"],
            "security_opt": ["no-new-privileges"],
            "mounts": self.mounts(),
            "log_config": LogConfig(type="json-file", config={"max-size": "10m", "max-file": "2"}),
            **self.limits(),
        }
        if self.drives_this_machine:
            return {**options, "network_mode": HOST, "pid_mode": HOST, "working_dir": str(ROOT)}
        return {**options, "network": self.networks[0], "hostname": name}

    def limits(self) -> dict[str, Any]:
        resources = self.request.resources
        limits: dict[str, Any] = {}
        if resources.cpus:
            limits["nano_cpus"] = int(resources.cpus * 1e9)
        if memory := self.memory_bytes:
            limits |= {"mem_limit": memory, "memswap_limit": memory}
        if resources.shm_gb:
            limits["shm_size"] = int(resources.shm_gb * GB)
        return limits

    @property
    def memory_bytes(self) -> int | None:
        return int(self.request.resources.memory_gb * GB) if self.request.resources.memory_gb else None

    def variables(self) -> dict[str, str]:
        """Without secrets: `docker inspect` shows these."""
        cpus = self.request.resources.cpus or (os.cpu_count() or 1) / self.request.nodes
        variables = {
            **self.request.variables,
            "HOME": "/tmp",
            "SLIPWAY_IMAGE": self.image,
            "SLIPWAY_CPUS": str(max(1, int(cpus))),
        }
        if self.drives_this_machine:
            return {**variables, "PYTHONPATH": f"{ROOT}:{ROOT / 'plugins'}"}
        if self.drives_fleet:
            agent = {"SLIPWAY_BACKEND": "agent", "SLIPWAY_AGENT": str(self.settings.agent_path or "")}
            return {**variables, **agent}
        if self.settings.jobs_tracking_uri and "MLFLOW_TRACKING_URI" in variables:
            variables["MLFLOW_TRACKING_URI"] = self.settings.jobs_tracking_uri
        return variables

    def mounts(self) -> list[Mount]:
        if self.settings.docker_volume:
            return self._mounts_of_volume()
        written = self._written()
        read = [ROOT] if self.drives_this_machine else self._read(written)
        return [_bind(path) for path in written] + [_bind(path, read_only=True) for path in read]

    def _mounts_of_volume(self) -> list[Mount]:
        """Folders that we choose, whatever the request says: docs/adr/0096."""
        settings, layout = self.settings, Layout(self.settings.home_path)
        fleet_reads = [layout.stack_path, layout.trusted_keys_path]
        read = fleet_reads if self.drives_fleet else [layout.data_path, layout.recipes_path]
        mounts = [volume_mount(settings, path) for path in self._written()]
        mounts += [volume_mount(settings, path, read_only=True) for path in read if path.exists()]
        if self.drives_fleet and settings.docker_agent_volume and settings.agent_path:
            mounts.append(Mount(str(settings.agent_path.parent), settings.docker_agent_volume, type="volume"))
        return mounts

    def _written(self) -> list[Path]:
        settings, layout = self.settings, Layout(self.settings.home_path)
        if self.drives_this_machine:
            return [settings.home_path, layout.runtime_path, *self.more_mounts]
        folders = [settings.work_path, settings.cache_path, settings.home_path / "locks"]
        if self.drives_fleet:
            folders += [layout.fleet_path, layout.gateway_path, layout.logs_path]
        if self.is_audited:
            folders.append(layout.audit_path)
        if store := local_path(settings.store_uri):
            folders.append(store)
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        return [*folders, self.job.path, *self.more_mounts]

    def _read(self, written: list[Path]) -> list[Path]:
        """What the spec names on this machine and is not there already."""
        found = {path for text in _strings(json.loads(self.request.spec)) if (path := local_path(text))}
        hides_home = {path for path in found if self.settings.home_path.is_relative_to(path)}
        outside = {path for path in found - hides_home if not any(map(path.is_relative_to, written))}
        return sorted(path for path in outside if _is_there(path))


def volume_mount(settings: Settings, path: Path, *, read_only: bool = False) -> Mount:
    """One folder or file of the home where the home is a named volume; it has to exist.

    Raises:
        SpecError: it is outside the home, where the volume does not reach.
    """
    if not path.is_relative_to(settings.home_path):
        raise SpecError(
            f"{path} is outside {settings.home_path}, and containers see only folders of the volume"
            f" {settings.docker_volume}; expected a store on S3, or one below {settings.home_path}"
        )
    mount = Mount(str(path), settings.docker_volume, type="volume", read_only=read_only)
    mount["VolumeOptions"] = {"Subpath": str(path.relative_to(settings.home_path)), "NoCopy": True}
    return mount


def owner(home_path: Path) -> str:
    """Whoever owns the home runs its steps, so that what they write is its owner's."""
    found = home_path.stat()
    return f"{found.st_uid}:{found.st_gid}"


def local_path(text: str) -> Path | None:
    """The path behind an absolute path or a file:// URI; None for anything else."""
    if text.startswith("file://"):
        return Path(unquote(urlsplit(text).path))
    return Path(text) if text.startswith("/") and "\n" not in text and "\0" not in text else None


def _is_there(path: Path) -> bool:
    """What this user may not look at, or no file system could hold, is not."""
    try:
        return path.exists()
    except OSError:
        return False


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)


def _bind(path: Path, *, read_only: bool = False) -> Mount:
    return Mount(str(path), str(path), type="bind", read_only=read_only)
