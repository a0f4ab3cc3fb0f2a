"""Makes what `docker compose up` needs and no repository should hold: `.env` and the files below `secrets/`.

    python3 -m pipeline.stack.compose_init [--rotate NAME]

Standard library only, so that it runs before anything is installed; `./slipway init` does the same. What is there
stays as it is. The folder is the owner's alone; the files in it can be read by all, because the services run as
other users and docker hands them the file as it is.
"""

import argparse
import base64
import secrets
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.errors import SlipwayError, SpecError
from pipeline.whole_files import write_atomically

ROOT = Path(__file__).resolve().parent.parent.parent
SOCKET = Path("/var/run/docker.sock")
AIRFLOW = ("airflow-api-server", "airflow-scheduler", "airflow-dag-processor", "airflow-triggerer")
CLIENTS = (*AIRFLOW, "jobs", "autoscaler")
"""They use MLflow and the store, or start steps that do."""

Kind = Literal["password", "fernet", "api_key", "signing_key", "given"]
"""`given` is not ours to make: the file is empty until somebody writes it."""


@dataclass(frozen=True, kw_only=True)
class Secret:
    """One file below `secrets/`."""

    name: str
    kind: Kind = "password"
    restart: tuple[str, ...]
    """The services that have to start anew when it changes, those that others wait for first."""
    first: str = ""
    """A command that has to be run before that; `{path}` becomes the secret's file."""
    then: str = ""
    """A command that has to be run after that."""


SECRETS = (
    Secret(
        name="postgres_password",
        restart=("postgres", "setup"),
        first="docker compose exec -T postgres sh /opt/slipway/set-password.sh < {path}",
    ),
    Secret(name="airflow_database_password", restart=("setup", "airflow-init", *AIRFLOW)),
    Secret(name="mlflow_database_password", restart=("setup", "mlflow")),
    Secret(name="airflow_password", restart=("airflow-api-server",)),
    Secret(
        name="airflow_fernet_key",
        kind="fernet",
        restart=("airflow-init", *AIRFLOW),
        then="docker compose exec airflow-scheduler python -m pipeline.stack.in_compose airflow rotate-fernet-key",
    ),
    Secret(name="airflow_secret_key", restart=("airflow-init", *AIRFLOW)),
    Secret(name="airflow_jwt_secret", restart=("airflow-init", *AIRFLOW)),
    Secret(name="mlflow_admin_password", restart=("mlflow", *CLIENTS)),
    Secret(name="mlflow_secret_key", restart=("mlflow",)),
    Secret(name="s3_access_key", restart=("s3", "setup", "mlflow", *CLIENTS)),
    Secret(name="s3_secret_key", restart=("s3", "setup", "mlflow", *CLIENTS)),
    Secret(name="gateway_api_key", kind="api_key", restart=("gateway",)),
    Secret(name="grafana_password", restart=("grafana",)),
    Secret(
        name="signing_key",
        kind="signing_key",
        restart=("setup", "jobs"),
        then="docker compose run --rm cli signing show   # and `signing distrust KEY` for the old one, if it leaked",
    ),
    Secret(name="hf_token", kind="given", restart=("jobs",)),
)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rotate", metavar="NAME", help="make this secret anew, and say what to start again")
    parser.add_argument(
        "--docker-socket", metavar="PATH", type=Path, default=SOCKET, help=f"for a new .env, by default {SOCKET}"
    )
    options = parser.parse_args(arguments)
    try:
        for line in rotate(ROOT, options.rotate) if options.rotate else initialise(ROOT, options.docker_socket):
            print(line)
    except SlipwayError as error:
        print(f"slipway: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def initialise(root: Path, socket: Path = SOCKET) -> list[str]:
    """Makes what is missing in the checkout `root`; says what it did, a line each."""
    said = []
    if not (root / ".env").exists():
        write_atomically(root / ".env", _environment((root / ".env.example").read_text(), socket), 0o600)
        said.append("made .env: ports, images and sizes; look through it")
    # Else Docker would make it, as root's.
    (root / "tls").mkdir(exist_ok=True)
    folder = secrets_folder(root)
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    made = [secret for secret in SECRETS if not (folder / secret.name).exists()]
    for secret in made:
        write_atomically(folder / secret.name, generate(secret.kind), 0o644)
    if made:
        said.append(f"made {len(made)} secrets in {folder}: {', '.join(secret.name for secret in made)}")
    return said or ["everything is there already: `docker compose up --wait` starts the stack"]


def rotate(root: Path, name: str) -> list[str]:
    """Replaces one secret; says which commands make it count.

    Raises:
        SpecError: there is no such secret, or it was never made.
    """
    secret = next((known for known in SECRETS if known.name == name), None)
    if secret is None:
        raise SpecError(f"there is no secret {name!r}; expected one of {', '.join(known.name for known in SECRETS)}")
    path = secrets_folder(root) / name
    if not path.exists():
        raise SpecError(f"{path} does not exist, so there is nothing to replace: run `./slipway init`")
    if secret.kind == "given":
        raise SpecError(
            f"{name} is not made here: write what you were given into {path}, then"
            f" `docker compose up --detach --force-recreate {' '.join(secret.restart)}`"
        )
    fresh = generate(secret.kind)
    # Airflow encrypts with the first key and decrypts with any: earlier ones stay, since nobody here can tell whether
    # everything was encrypted anew.
    write_atomically(path, f"{fresh},{path.read_text()}" if secret.kind == "fernet" else fresh, 0o644)
    first = secret.first.format(path=path)
    commands = (first, f"docker compose up --detach --force-recreate {' '.join(secret.restart)}", secret.then)
    return [f"made a new {name}; to make it count:", *(f"  {command}" for command in commands if command)]


def generate(kind: Kind) -> str:
    """Random, and safe in a URL: database passwords stand in one."""
    if kind == "given":
        return ""
    if kind in ("fernet", "signing_key"):  # 32 random bytes are an Ed25519 key
        return base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()
    return ("slipway-" if kind == "api_key" else "") + secrets.token_urlsafe(32)


def secrets_folder(root: Path) -> Path:
    """Where compose looks for them: SLIPWAY_SECRETS_FOLDER of .env, relative to the checkout."""
    name, found = "SLIPWAY_SECRETS_FOLDER=", "secrets"
    for line in (root / ".env").read_text().splitlines() if (root / ".env").exists() else ():
        if line.startswith(name):
            found = line.removeprefix(name).strip() or found
    return (root / found).absolute()


def _environment(example: str, socket: Path) -> str:
    """The example with this machine's own values: the Docker socket, and the group that may use it."""
    if not socket.exists():
        raise SpecError(f"there is no {socket}: start the Docker engine, or name its socket: --docker-socket PATH")
    own = {"SLIPWAY_DOCKER_GID": str(socket.stat().st_gid), "SLIPWAY_DOCKER_SOCKET": str(socket.absolute())}
    lines = []
    for line in example.splitlines():
        name = line.partition("=")[0]
        lines.append(f"{name}={own[name]}" if name in own else line)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
