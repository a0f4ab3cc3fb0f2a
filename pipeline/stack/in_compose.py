"""Becomes one service of docker compose: works out its settings from the environment and the secrets, then runs it.

    python -m pipeline.stack.in_compose SERVICE [ARGUMENTS …]

SERVICE is `setup`, `airflow-init`, one of Airflow's four programs, `mlflow`, `gateway`, `doors`, `metrics`,
`autoscaler` or `replica-guard`;
`airflow ARGUMENTS` runs any of Airflow's commands, and `run COMMAND …` any program that uses MLflow and the store.
Reads the folder SLIPWAY_SECRETS. A secret reaches a program through its environment or a file in memory, never through
its command line; what `docker inspect` shows holds none.
"""

import dataclasses
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pipeline import settings as configuration
from pipeline.errors import SlipwayError, SpecError
from pipeline.settings import Settings
from pipeline.stack import airflow_settings, compose_services, compose_setup, mlflow_part
from pipeline.stack.airflow_part import PROGRAMS
from pipeline.stack.airflow_settings import AirflowPlace, Sections
from pipeline.stack.layout import AIRFLOW_USER, Layout, read_secret
from pipeline.whole_files import write_atomically

MEMORY = Path("/tmp")
"""A file system in memory, this container's own."""
BUCKET_FOLDER = "mlflow"
"""Of MLflow's artifacts, beside the store in the same bucket."""


@dataclass(frozen=True)
class Run:
    """What a service becomes."""

    command: tuple[str, ...]
    variables: dict[str, str] = field(default_factory=dict)
    directory: Path = MEMORY


def main() -> int:
    service, arguments = (*sys.argv[1:2], "")[0], tuple(sys.argv[2:])
    try:
        configured = configuration.load()
        run = prepare(service, arguments, configured)
    except SlipwayError as error:
        print(f"error {error.exit_code} {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    if run is not None:
        os.chdir(run.directory)
        os.execvpe(run.command[0], run.command, configuration.child_environment(run.variables))
    return 0


def prepare(service: str, arguments: tuple[str, ...], configured: Settings) -> Run | None:
    """What to run; None if the service's work is done.

    Raises:
        SpecError: there is no such service, or it was not given one of its secrets.
    """
    if service in PROGRAMS:
        return airflow_program(service, configured)
    known: dict[str, Callable[[], Run | None]] = {
        "setup": lambda: compose_setup.set_up(configured, secrets_path(configured)),
        "airflow-init": lambda: airflow_init(configured),
        "airflow": lambda: airflow(arguments, configured),
        "mlflow": lambda: mlflow(configured),
        "gateway": lambda: gateway(configured),
        "doors": lambda: doors(configured),
        "metrics": lambda: Run((sys.executable, "-m", "pipeline.fleet.exporter")),
        "replica-guard": lambda: Run((sys.executable, "-m", "pipeline.fleet.replica_guard", str(configured.home_path))),
        "autoscaler": lambda: autoscaler(configured),
        "run": lambda: Run(arguments, client_variables(configured)),
    }
    if service not in known or (service in ("airflow", "run") and not arguments):
        raise SpecError(f"no service {service!r} with the arguments {arguments}; expected one of {sorted(known)}")
    return known[service]()


def secrets_path(configured: Settings) -> Path:
    if configured.secrets_path is None:
        raise SpecError("SLIPWAY_SECRETS is not set; expected the folder of the service's secrets, /run/secrets")
    return configured.secrets_path


def client_variables(configured: Settings) -> dict[str, str]:
    """Credentials of the store, of MLflow and, where a service has them, of the model hub and of the signer."""
    folder = secrets_path(configured)
    logins = (
        compose_services.store_login,
        compose_services.mlflow_login,
        compose_services.hub_login,
        compose_services.signing_login,
    )
    return {name: value for login in logins for name, value in login(folder).items()}


# --- Airflow -----------------------------------------------------------------------------------------------------


def airflow_program(name: str, configured: Settings) -> Run:
    """One of Airflow's four; the API server checks passwords."""
    if name == "airflow-api-server":
        place = _place(configured)
        password = read_secret(secrets_path(configured), "airflow_password")
        write_atomically(place.passwords_path, airflow_settings.passwords(place, password))
    own = airflow_settings.scheduler_variables() if name == "airflow-scheduler" else {}
    run = airflow(PROGRAMS[name], configured)
    return dataclasses.replace(run, variables=run.variables | own)


def airflow(arguments: tuple[str, ...], configured: Settings) -> Run:
    """Any of Airflow's commands."""
    place = _place(configured)
    return Run((sys.executable, "-m", "airflow", *arguments), _airflow_variables(place, configured))


def airflow_init(configured: Settings) -> None:
    """Brings Airflow's database to this release, and makes the DAGs of recipes with a schedule."""
    password = read_secret(secrets_path(configured), "airflow_database_password")
    compose_setup.migrate(
        compose_services.database_uri("airflow", password),
        configuration.child_environment(_airflow_variables(_place(configured), configured)),
    )
    compose_setup.schedule(configured)


def _place(configured: Settings) -> AirflowPlace:
    layout = Layout(configured.home_path)
    ports = compose_services.ports(configured)
    return AirflowPlace(
        layout=layout,
        listen=ports.listen,
        port=ports.airflow,
        base_url=ports.public_url("airflow"),
        execution_url=f"{ports.url('airflow')}/execution/",
        user=AIRFLOW_USER,
        passwords_path=MEMORY / "airflow-passwords.json",
    )


def _airflow_variables(place: AirflowPlace, configured: Settings) -> dict[str, str]:
    return {
        "AIRFLOW_HOME": str(place.layout.airflow_path),
        **mlflow_part.QUIET,
        **airflow_settings.variables(place, airflow_secrets(secrets_path(configured))),
        **client_variables(configured),
    }


def airflow_secrets(folder: Path) -> Sections:
    """Commands that print the secrets, so that Airflow's own configuration holds none of them."""
    uri = compose_services.database_uri("airflow", "%s")
    password = folder / "airflow_database_password"
    return {
        "core": {"fernet_key_cmd": f"cat {folder / 'airflow_fernet_key'}"},
        "database": {"sql_alchemy_conn_cmd": f"""sh -c 'printf "{uri}" "$(cat {password})"'"""},
        "api": {"secret_key_cmd": f"cat {folder / 'airflow_secret_key'}"},
        "api_auth": {"jwt_secret_cmd": f"cat {folder / 'airflow_jwt_secret'}"},
    }


# --- MLflow ------------------------------------------------------------------------------------------------------


def mlflow(configured: Settings) -> Run:
    """The server with sign-in; artifacts go through it to the bucket."""
    folder = secrets_path(configured)
    password = read_secret(folder, "mlflow_database_password")
    admin_password = read_secret(folder, "mlflow_admin_password")
    users_uri = compose_services.database_uri("mlflow_auth", password)
    compose_setup.set_mlflow_password(users_uri, compose_services.MLFLOW_USER, admin_password)
    sign_in = MEMORY / "mlflow-sign-in.ini"
    write_atomically(sign_in, _sign_in(users_uri))
    variables = {
        **mlflow_part.QUIET,
        **compose_services.store_login(folder),
        "MLFLOW_BACKEND_STORE_URI": compose_services.database_uri("mlflow", password),
        "MLFLOW_AUTH_CONFIG_PATH": str(sign_in),
        "MLFLOW_AUTH_ADMIN_PASSWORD": admin_password,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": read_secret(folder, "mlflow_secret_key"),
        **({"MLFLOW_S3_ENDPOINT_URL": configured.s3_endpoint} if configured.s3_endpoint else {}),
    }
    return Run(_mlflow_command(configured), variables)


def _mlflow_command(configured: Settings) -> tuple[str, ...]:
    ports = compose_services.ports(configured)
    published = ports.public_url("mlflow").rpartition(":")[2]
    hosts = (f"{ports.hosts['mlflow']}:{ports.mlflow}", f"127.0.0.1:{published}", f"localhost:{published}")
    artifacts = f"{configured.store_uri.rpartition('/')[0]}/{BUCKET_FOLDER}"
    return (
        *(sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth"),
        *("--host", ports.listen, "--port", str(ports.mlflow), "--workers", "1"),
        *("--artifacts-destination", artifacts, "--serve-artifacts", "--allowed-hosts", ",".join(hosts)),
    )


def _sign_in(users_uri: str) -> str:
    """Users may read everything and change what is theirs; a checked password is remembered for a minute, since
    checking one takes a third of a second."""
    lines = (
        "[mlflow]",
        "default_permission = READ",
        f"database_uri = {users_uri}",
        f"admin_username = {compose_services.MLFLOW_USER}",
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth",
        "auth_cache_ttl_seconds = 60",
    )
    return "\n".join(lines) + "\n"


# --- the gateway -------------------------------------------------------------------------------------------------


def gateway(configured: Settings) -> Run:
    """Envoy. The clients' key goes into the home, where rollouts find it when they write Envoy's configuration."""
    from pipeline.fleet import gateway as part
    from pipeline.fleet.doors import tls

    layout = Layout(configured.home_path)
    certificate = tls.certificate_in(configured.tls_path) if configured.tls_path else None
    try:
        tls.choose(layout, certificate)
    except SpecError as error:
        # A pair that is being renewed, say: one that was good before is shown on, as by a gateway that was not ended.
        if certificate is None or certificate != tls.certificate_of(layout) or not tls.secret_path(layout).exists():
            raise
        print(f"the certificate before is shown on: {error}", file=sys.stderr, flush=True)
    write_atomically(part.client_key_path(layout), read_secret(secrets_path(configured), "gateway_api_key"))
    program = part.program(layout)
    return Run(program.command, program.environment, Path(str(program.directory)))


def doors(configured: Settings) -> Run:
    """What keeps the gateway at what its clients may do."""
    return Run((sys.executable, "-m", "pipeline.fleet.doors", str(configured.home_path)))


def autoscaler(configured: Settings) -> Run:
    """What adds replicas and takes them away."""
    return Run((sys.executable, "-m", "pipeline.fleet.autoscaling"), client_variables(configured))


if __name__ == "__main__":
    sys.exit(main())
