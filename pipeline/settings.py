"""The only module that reads the environment.

| variable                | default                    | what it says                                              |
|-------------------------|----------------------------|-----------------------------------------------------------|
| SLIPWAY_HOME            | <root>/.slipway            | the folder of all state: databases, logs, jobs, the fleet |
| SLIPWAY_VENVS           | <root>/.venvs              | the folder of the three Python environments               |
| SLIPWAY_STORE           | file://$SLIPWAY_HOME/store | where artifacts live                                      |
| SLIPWAY_S3_ENDPOINT     | none                       | of an S3-compatible server that is not AWS                |
| MLFLOW_TRACKING_URI     | none                       | the MLflow server                                         |
| MLFLOW_TRACKING_USERNAME, …_PASSWORD | none          | who asks MLflow, if it wants to know                      |
| SLIPWAY_SECRETS         | none                       | a folder with a file for each secret (docker compose)     |
| SLIPWAY_TLS             | none                       | a folder with the gateway's tls.crt and tls.key (compose) |
| SLIPWAY_RELEASE         | none                       | the MLflow experiment that a step logs to                 |
| SLIPWAY_NODE_RANK       | 0                          | this node of a job of several nodes                       |
| SLIPWAY_NODES           | 1                          | how many nodes the job has                                |
| SLIPWAY_RENDEZVOUS      | none                       | host:port at which the job's nodes meet                   |
| SLIPWAY_JOB_ID          | none                       | the backend's name for the job, the same on every node    |
| SLIPWAY_CPUS            | those of the machine       | how many cores this node of a job may keep busy           |
| SLIPWAY_BACKEND         | process                    | where steps run: process, docker or agent                 |
| SLIPWAY_JOBS_TRACKING_URI | MLFLOW_TRACKING_URI      | MLflow's address as containers see it                     |
| SLIPWAY_DOCKER_NETWORK  | bridge                     | the network that containers of steps join                 |
| SLIPWAY_DOCKER_FLEET_NETWORK | this machine's own    | the network of replicas; containers of rollouts join it   |
| SLIPWAY_DOCKER_VOLUME   | none                       | the named volume that is mounted at SLIPWAY_HOME          |
| SLIPWAY_DOCKER_PROJECT  | slipway                    | the docker compose project that replicas belong to        |
| SLIPWAY_DOCKER_AGENT_VOLUME | none                   | the named volume of SLIPWAY_AGENT, for rollouts           |
| SLIPWAY_AGENT           | none                       | the socket of the agent that starts containers for others |
| SLIPWAY_IMAGE_TAG       | <release>-cpu              | of the container images that steps run in                 |
| SLIPWAY_IMAGE           | none                       | name@sha256:id of the image that this process runs in     |
| SLIPWAY_SIGNING_KEY     | the home's signing/key     | the private key of bundles, for who registers them        |
| SLIPWAY_LOG_PROMPTS     | false                      | true: replicas log what clients ask and get               |
| SLIPWAY_REGIONS         | one, then kept             | where replicas listen: name=address,…, the local first    |
| SLIPWAY_PORT_<PART>     | a free one, then kept      | of AIRFLOW, MLFLOW, GATEWAY, GATEWAY_ADMIN or METRICS     |
"""

import ipaddress
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, cast, get_args

from pydantic import BaseModel, ConfigDict, Field

from pipeline.errors import SpecError
from pipeline.images import default_tag

ROOT = Path(__file__).resolve().parent.parent
"""Of the checkout (or, in an image, of the installed tree)."""

PORT_PREFIX = "SLIPWAY_PORT_"
BackendName = Literal["process", "docker", "agent"]
SECRET_PREFIXES = ("AWS_", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "HF_TOKEN")
"""Of the variables that a step may need and that nobody else may see."""
SIGNING_KEY = "SLIPWAY_SIGNING_KEY"
"""Of the variables, the one that only the step `register` may see."""


class Settings(BaseModel):
    """Where things are, for this process."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    home_path: Path
    venvs_path: Path
    store_uri: str
    s3_endpoint: str | None = None
    tracking_uri: str | None = None
    tracking_login: tuple[str, str] | None = Field(default=None, repr=False)
    """User and password for MLflow."""
    secrets_path: Path | None = None
    """Where secrets are files, instead of being the home's `credentials.json`."""
    signing_key: str | None = Field(default=None, repr=False)
    """The private key that signs bundles, where it is not a file of the home."""
    tls_path: Path | None = None
    """Where the gateway's certificate is in docker compose, if it has one."""
    release: str | None = None
    node_rank: int = 0
    nodes: int = 1
    rendezvous: str | None = None
    job_id: str | None = None
    image_tag: str = default_tag()
    """Of the images that steps run in; see `pipeline.images`."""
    image: str | None = None
    """The image that this process runs in, as its backend names it."""
    cpus: int | None = None
    """None: all that the process may run on."""
    backend: BackendName = "process"
    """Where steps run. It is among `model_fields_set` only if somebody said so."""
    jobs_tracking_uri: str | None = None
    docker_network: str | None = None
    docker_fleet_network: str | None = None
    docker_project: str = "slipway"
    docker_volume: str | None = None
    docker_agent_volume: str | None = None
    agent_path: Path | None = None
    log_prompts: bool = False
    """Of replicas that are started from now on; never of the gateway."""
    ports: dict[str, int] = {}
    """Part of the local stack to the port that the user wants for it."""
    regions: dict[str, str] = {}
    """Name to the address at which replicas listen there, in the order in which they are preferred."""

    @property
    def work_path(self) -> Path:
        """Scratch that survives a killed attempt: checkpoints, staged files."""
        return self.home_path / "work"

    @property
    def cache_path(self) -> Path:
        """Verified local copies of remote artifacts, by digest."""
        return self.home_path / "cache"

    def python_path(self, environment: str) -> Path:
        """The interpreter of one of the three environments."""
        return self.venvs_path / environment / "bin" / "python"


def load(environ: Mapping[str, str] = os.environ) -> Settings:
    """The settings that `environ` gives.

    Raises:
        SpecError: a number that is none, or a node rank outside the job.
    """
    home = Path(environ.get("SLIPWAY_HOME") or ROOT / ".slipway").absolute()
    nodes, node_rank = _number(environ, "SLIPWAY_NODES", 1), _number(environ, "SLIPWAY_NODE_RANK", 0)
    if not 0 <= node_rank < nodes:
        raise SpecError(f"SLIPWAY_NODE_RANK is {node_rank}, expected 0 to {nodes - 1} (SLIPWAY_NODES is {nodes})")
    return Settings(
        home_path=home,
        venvs_path=Path(environ.get("SLIPWAY_VENVS") or ROOT / ".venvs").absolute(),
        store_uri=(environ.get("SLIPWAY_STORE") or (home / "store").as_uri()).rstrip("/"),
        s3_endpoint=environ.get("SLIPWAY_S3_ENDPOINT") or None,
        tracking_uri=environ.get("MLFLOW_TRACKING_URI") or None,
        tracking_login=_tracking_login(environ),
        secrets_path=Path(environ["SLIPWAY_SECRETS"]) if environ.get("SLIPWAY_SECRETS") else None,
        signing_key=environ.get(SIGNING_KEY) or None,
        tls_path=Path(environ["SLIPWAY_TLS"]) if environ.get("SLIPWAY_TLS") else None,
        release=environ.get("SLIPWAY_RELEASE") or None,
        node_rank=node_rank,
        nodes=nodes,
        rendezvous=environ.get("SLIPWAY_RENDEZVOUS") or None,
        job_id=environ.get("SLIPWAY_JOB_ID") or None,
        image_tag=environ.get("SLIPWAY_IMAGE_TAG") or default_tag(),
        image=environ.get("SLIPWAY_IMAGE") or None,
        cpus=_number(environ, "SLIPWAY_CPUS", 0) or None,
        jobs_tracking_uri=environ.get("SLIPWAY_JOBS_TRACKING_URI") or None,
        docker_network=environ.get("SLIPWAY_DOCKER_NETWORK") or None,
        docker_fleet_network=environ.get("SLIPWAY_DOCKER_FLEET_NETWORK") or None,
        docker_project=environ.get("SLIPWAY_DOCKER_PROJECT") or "slipway",
        docker_volume=environ.get("SLIPWAY_DOCKER_VOLUME") or None,
        docker_agent_volume=environ.get("SLIPWAY_DOCKER_AGENT_VOLUME") or None,
        agent_path=Path(environ["SLIPWAY_AGENT"]) if environ.get("SLIPWAY_AGENT") else None,
        log_prompts=_flag(environ, "SLIPWAY_LOG_PROMPTS"),
        ports={
            name.removeprefix(PORT_PREFIX).lower(): _number(environ, name, 0)
            for name, text in environ.items()
            if name.startswith(PORT_PREFIX) and text
        },
        regions=_regions(environ.get("SLIPWAY_REGIONS") or ""),
        **_backend(environ),
    )


def _regions(text: str) -> dict[str, str]:
    """`west=127.0.0.1,east=127.0.0.2` as name to address."""
    pairs = [part.strip().split("=") for part in text.split(",") if part.strip()]
    regions = {pair[0]: pair[-1] for pair in pairs}
    try:
        addresses = {str(ipaddress.ip_address(address)) for address in regions.values()}
    except ValueError:
        addresses = set()
    if any(len(pair) != 2 or not pair[0].isidentifier() for pair in pairs) or not len(pairs) == len(addresses):
        raise SpecError(f"SLIPWAY_REGIONS is {text!r}, expected NAME=ADDRESS,… with a name and an IP address for each")
    return regions


def _backend(environ: Mapping[str, str]) -> dict[str, BackendName]:
    text = environ.get("SLIPWAY_BACKEND")
    return {"backend": parse_backend(text, "SLIPWAY_BACKEND")} if text else {}


def parse_backend(text: str, source: str) -> BackendName:
    """`text` as a backend's name; `source` is where the user wrote it."""
    for name in get_args(BackendName):
        if name == text:
            return cast(BackendName, name)
    raise SpecError(f"{source} is {text!r}, expected one of {', '.join(get_args(BackendName))}")


def _tracking_login(environ: Mapping[str, str]) -> tuple[str, str] | None:
    user, password = environ.get("MLFLOW_TRACKING_USERNAME"), environ.get("MLFLOW_TRACKING_PASSWORD")
    return (user, password) if user and password else None


def _flag(environ: Mapping[str, str], name: str) -> bool:
    text = environ.get(name) or "false"
    if text not in ("true", "false"):
        raise SpecError(f"{name} is {text!r}, expected true or false")
    return text == "true"


def _number(environ: Mapping[str, str], name: str, default: int) -> int:
    text = environ.get(name) or str(default)
    if not text.isdecimal():
        raise SpecError(f"{name} is {text!r}, expected a whole number")
    return int(text)


def meeting_of_ranks(environ: Mapping[str, str] = os.environ) -> tuple[str, int, bool]:
    """Where torchrun lets the ranks of this attempt meet: host, port, and whether this rank is to listen there."""
    return environ["MASTER_ADDR"], int(environ["MASTER_PORT"]), environ["RANK"] == "0"


def place_in_gang(environ: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """The rank that torchrun has given to this process of the present attempt, and how many there are."""
    return int(environ["RANK"]), int(environ["WORLD_SIZE"])


def rank_error_path(environ: Mapping[str, str] = os.environ) -> Path | None:
    """Where torchrun looks for what this rank died of."""
    path = environ.get("TORCHELASTIC_ERROR_FILE")
    return Path(path) if path else None


def job_secrets(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables that hold secrets for a step: credentials of the store, of MLflow and of the model hub."""
    return {name: value for name, value in environ.items() if name.startswith(SECRET_PREFIXES)}


def child_environment(changes: Mapping[str, str], environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment of a program that this process starts: its own, with `changes`."""
    return {**environ, **changes}


def set_for_libraries(variables: Mapping[str, str]) -> None:
    """Sets variables that a library reads when it is imported, for this process; what is set already stays."""
    for name, value in variables.items():
        os.environ.setdefault(name, value)
