"""The state folder: where everything of one Slipway lives, its ports, and its credentials.

Reads and writes `stack.json` (the ports, chosen once) and `credentials.json` (mode 0600, generated once) in the home
folder. Everything else is a name of a path.
"""

import base64
import hashlib
import json
import os
import secrets
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import Field, ValidationError

from pipeline import settings
from pipeline.contracts.base import Contract
from pipeline.errors import SpecError
from pipeline.whole_files import write_atomically

T = TypeVar("T", bound=Contract)

LOOPBACK = "127.0.0.1"
AIRFLOW_USER = "admin"
MAX_SOCKET_FOLDER_CHARS = 80
"""The kernel takes 107 bytes for a socket's path; the longest name that is put into the folder needs 20."""


PARTS = ("airflow", "mlflow", "gateway", "gateway_admin", "metrics")
"""What has a port. Replicas take free ones as they start."""


class Ports(Contract):
    """Where the parts listen, and where they are found."""

    airflow: int
    mlflow: int
    gateway: int
    gateway_admin: int
    metrics: int = 0
    """0 in a home of an earlier release, until the stack is started."""
    listen: str = LOOPBACK
    """The address at which the gateway listens for clients: another than loopback only inside a container."""
    hosts: dict[str, str] = Field(default_factory=dict)
    """Part to the name of its host, where that is not this machine."""
    public: dict[str, str] = Field(default_factory=dict)
    """Part to the URL that people use, where programs use another."""
    regions: dict[str, str] = Field(default_factory=dict)
    """Name to the address at which replicas listen there, the preferred one first; empty: one, on loopback."""

    def numbers(self) -> dict[str, int]:
        """Part to port."""
        return {part: getattr(self, part) for part in PARTS}

    def host(self, part: str) -> str:
        """Where programs find `part`: a name or an address."""
        return self.hosts.get(part, LOOPBACK)

    def url(self, part: str) -> str:
        """Where programs reach `part`, e.g. `http://127.0.0.1:5000`."""
        return f"http://{self.host(part)}:{self.numbers()[part]}"

    def public_url(self, part: str) -> str:
        """Where people reach it."""
        return self.public.get(part, self.url(part))


class Access(Contract):
    """What a client of the stack needs."""

    api_key: str
    """Of the gateway: `Authorization: Bearer …`."""
    airflow_user: str
    airflow_password: str


class Credentials(Access):
    """Secrets of this home. None of them leaves the machine."""

    airflow_jwt_secret: str
    airflow_fernet_key: str
    airflow_secret_key: str


@dataclass(frozen=True)
class Layout:
    """Paths below one home folder."""

    home_path: Path

    @property
    def stack_path(self) -> Path:
        return self.home_path / "stack.json"

    @property
    def credentials_path(self) -> Path:
        return self.home_path / "credentials.json"

    @property
    def logs_path(self) -> Path:
        return self.home_path / "logs"

    @property
    def supervisor_path(self) -> Path:
        return self.home_path / "supervisor"

    @property
    def postgres_path(self) -> Path:
        return self.home_path / "postgres"

    @property
    def airflow_path(self) -> Path:
        return self.home_path / "airflow"

    @property
    def mlflow_path(self) -> Path:
        return self.home_path / "mlflow"

    @property
    def gateway_path(self) -> Path:
        return self.home_path / "gateway"

    @property
    def fleet_path(self) -> Path:
        return self.home_path / "fleet"

    @property
    def targets_path(self) -> Path:
        """What Prometheus reads; a folder of its own, since the fleet's holds keys."""
        return self.fleet_path / "targets"

    @property
    def audit_path(self) -> Path:
        """The audit log and what says how far it goes."""
        return self.home_path / "audit"

    @property
    def jobs_path(self) -> Path:
        return self.home_path / "jobs"

    @property
    def store_path(self) -> Path:
        return self.home_path / "store"

    @property
    def work_path(self) -> Path:
        return self.home_path / "work"

    @property
    def cache_path(self) -> Path:
        return self.home_path / "cache"

    @property
    def data_path(self) -> Path:
        return self.home_path / "data"

    @property
    def signing_path(self) -> Path:
        return self.home_path / "signing"

    @property
    def signing_key_path(self) -> Path:
        """The private key that signs bundles."""
        return self.signing_path / "key"

    @property
    def trusted_keys_path(self) -> Path:
        """Public keys; a folder of its own, since a rollout reads it and must not see the private one."""
        return self.signing_path / "trusted"

    @property
    def dags_path(self) -> Path:
        """Generated DAG files: one for each recipe with a schedule."""
        return self.home_path / "dags"

    @property
    def recipes_path(self) -> Path:
        """The user's own recipes, found by name."""
        return self.home_path / "recipes"

    @property
    def runtime_path(self) -> Path:
        """Unix sockets: inside the home, or, where the home's path is too long for a socket, in the temp folder."""
        inside = self.home_path / "run"
        if len(os.fsencode(inside)) <= MAX_SOCKET_FOLDER_CHARS:
            return inside
        name = hashlib.sha256(os.fsencode(self.home_path)).hexdigest()[:12]
        return Path(tempfile.gettempdir()) / f"slipway-{os.getuid()}-{name}"

    def log_path(self, name: str) -> Path:
        """Of a supervised program."""
        return self.logs_path / f"{name}.log"

    def create(self) -> None:
        """Makes the folders, the owner's alone."""
        self.home_path.mkdir(parents=True, exist_ok=True)
        self.home_path.chmod(0o700)
        for folder in (
            self.logs_path,
            self.supervisor_path,
            self.airflow_path,
            self.mlflow_path,
            self.gateway_path,
            self.fleet_path,
            self.targets_path,
            self.audit_path,
            self.jobs_path,
            self.store_path,
            self.work_path,
            self.cache_path,
            self.data_path,
            self.dags_path,
            self.recipes_path,
            self.signing_path,
            self.trusted_keys_path,
        ):
            folder.mkdir(exist_ok=True)
        self._create_runtime()

    def _create_runtime(self) -> None:
        folder = self.runtime_path
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.is_symlink() or folder.stat().st_uid != os.getuid():
            raise SpecError(f"{folder} belongs to somebody else: remove it, or set SLIPWAY_HOME to a shorter path")
        folder.chmod(0o700)

    def ports(self) -> Ports:
        """The ports of this home.

        Raises:
            SpecError: the stack was never started here, or `stack.json` is damaged.
        """
        return read_json(self.stack_path, Ports)

    def choose_ports(self, wanted: dict[str, int] | None = None) -> Ports:
        """The ports of this home, with `wanted` ones set and those never chosen before taken from the free ones."""
        before = self.ports() if self.stack_path.exists() else None
        known = before.numbers() if before else {}
        chosen = {**{part: port for part, port in known.items() if port}, **(wanted or {})}
        unknown = set(chosen) - set(PARTS)
        if unknown:
            raise SpecError(f"no part has a port named {sorted(unknown)}, expected one of {sorted(PARTS)}")
        chosen |= _free_ports([part for part in PARTS if part not in chosen], taken=set(chosen.values()))
        if len(set(chosen.values())) != len(chosen):
            raise SpecError(f"the ports {chosen} name one port twice: give every part its own")
        ports = before.model_copy(update=chosen) if before else Ports(**chosen)
        moved = {part: _with_port(url, known.get(part), chosen.get(part)) for part, url in ports.public.items()}
        ports = ports.model_copy(update={"public": moved})
        if ports != before:
            write_json(self.stack_path, ports)
        return ports

    def choose_regions(self, wanted: dict[str, str]) -> dict[str, str]:
        """The regions of this home, `wanted` from now on if there are any; they say where new replicas start."""
        ports = self.ports()
        if wanted and wanted != ports.regions:
            write_json(self.stack_path, ports.model_copy(update={"regions": wanted}))
        return wanted or ports.regions

    def credentials(self) -> Credentials:
        """The credentials of this home.

        Raises:
            SpecError: the stack was never started here, or `credentials.json` is damaged.
        """
        return read_json(self.credentials_path, Credentials)

    def access(self) -> Access:
        """What a client of this home's stack needs: from the folder of secrets where there is one, else from the home.

        Raises:
            SpecError: it is not there.
        """
        folder = settings.load().secrets_path
        if folder is None:
            return self.credentials()
        return Access(
            api_key=read_secret(folder, "gateway_api_key"),
            airflow_user=AIRFLOW_USER,
            airflow_password=read_secret(folder, "airflow_password"),
        )

    def ensure_credentials(self) -> Credentials:
        """The credentials of this home, generated if it has none."""
        if not self.credentials_path.exists():
            write_json(self.credentials_path, _new_credentials())
        return self.credentials()


def read_json(path: Path, kind: type[T]) -> T:
    """The contract that `path` holds."""
    try:
        return kind.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise SpecError(f"no {path}: the stack was never started here; run `./slipway up`") from error
    except ValidationError as error:
        raise SpecError(
            f"{path} is damaged ({error}): remove it while the stack is down, then `./slipway up`"
        ) from error


def read_secret(folder: Path, name: str) -> str:
    """A secret that is a file of its own.

    Raises:
        SpecError: this program was not given it.
    """
    try:
        return (folder / name).read_text().strip()
    except OSError as error:
        raise SpecError(
            f"cannot read the secret {folder / name}: {error.strerror}; `./slipway init` makes it;"
            " which services can read it says docker-compose.yml"
        ) from error


def write_json(path: Path, value: Contract) -> None:
    """Replaces `path` in one move; only the owner may read it."""
    write_atomically(path, json.dumps(value.model_dump(), indent=2) + "\n")


def _with_port(url: str, before: int | None, now: int | None) -> str:
    host, _, port = url.rpartition(":")
    return f"{host}:{now}" if before and port == str(before) else url


def _free_ports(names: list[str], *, taken: set[int]) -> dict[str, int]:
    """A free loopback port for each name, all held at once so that none is given twice."""
    held = []
    ports: dict[str, int] = {}
    for name in names:
        while name not in ports:
            held.append(socket.create_server((LOOPBACK, 0)))
            port = held[-1].getsockname()[1]
            if port not in taken:
                ports[name] = port
    for holder in held:
        holder.close()
    return ports


def _new_credentials() -> Credentials:
    return Credentials(
        api_key=f"slipway-{secrets.token_urlsafe(24)}",
        airflow_user=AIRFLOW_USER,
        airflow_password=secrets.token_urlsafe(18),
        airflow_jwt_secret=secrets.token_urlsafe(48),
        airflow_fernet_key=_fernet_key(),
        airflow_secret_key=secrets.token_urlsafe(32),
    )


def _fernet_key() -> str:
    """32 random bytes in URL-safe base64, padded: what Airflow encrypts its stored connections with."""
    return base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()
