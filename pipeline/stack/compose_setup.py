"""What has to be there before docker compose's services start: the home, databases, the bucket, Airflow's tables.

Everything is harmless to repeat, and is repeated at every `docker compose up`: so a changed password takes effect.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline.errors import SlipwayError, SpecError, TransientError
from pipeline.fleet.doors import tls
from pipeline.recipe_files import known_recipes
from pipeline.settings import Settings
from pipeline.signing import keys
from pipeline.stack import compose_services
from pipeline.stack.compose_services import DATABASES, POSTGRES_HOST, SUPERUSER
from pipeline.stack.layout import Layout, read_secret, write_json
from pipeline.stack.schedules import write_schedules

MIGRATE_TIMEOUT_S = 600
STAMP = "slipway_migrated"
"""A table of Airflow's database: the release that its tables were brought to."""


def set_up(configured: Settings, folder: Path) -> None:
    """Makes the home, the databases and the bucket. `folder` holds the secrets.

    Raises:
        SpecError: a password or key is wrong.
        TransientError: PostgreSQL or the S3 server does not answer.
    """
    layout = Layout(configured.home_path)
    layout.create()
    write_ports(configured, layout)
    trust_signer(layout, folder)
    create_databases(folder)
    create_bucket(configured, folder)


def write_ports(configured: Settings, layout: Layout) -> None:
    """A gateway that runs goes on speaking TLS with clients, if it did when it started."""
    ports = compose_services.ports(configured)
    if tls.certificate_of(layout) is not None:
        public = ports.public_url("gateway").replace("http://", "https://", 1)
        ports = ports.model_copy(update={"public": {**ports.public, "gateway": public}})
    write_json(layout.stack_path, ports)


def trust_signer(layout: Layout, folder: Path) -> None:
    """What the secret key signs is accepted; so is what an earlier one signed, until somebody says otherwise."""
    identity = keys.trust(layout, keys.parse_private(read_secret(folder, "signing_key"), "signing_key").public_key())
    if identity in keys.trusted(layout):
        print(f"bundles signed by {keys.short(identity)}: trusted", flush=True)
        return
    print(
        f"bundles signed by {keys.short(identity)}, the secret signing_key, are refused: it was distrusted here. Make"
        " another by `./slipway init --rotate signing_key`",
        flush=True,
    )


def create_databases(folder: Path) -> None:
    """Each with a role of its own, whose password becomes what its secret says now."""
    password = read_secret(folder, "postgres_password")
    with _cursor(f"postgresql://{SUPERUSER}:{password}@{POSTGRES_HOST}/postgres") as cursor:
        for role in sorted(set(DATABASES.values())):
            if not _exists(cursor, "SELECT 1 FROM pg_roles WHERE rolname = %s", role):
                cursor.execute(f'CREATE ROLE "{role}" LOGIN')
            password = read_secret(folder, f"{role}_database_password")
            cursor.execute(f'ALTER ROLE "{role}" PASSWORD %s', (password,))
        for database, role in DATABASES.items():
            if not _exists(cursor, "SELECT 1 FROM pg_database WHERE datname = %s", database):
                cursor.execute(f'CREATE DATABASE "{database}" OWNER "{role}"')
    print(f"databases {', '.join(DATABASES)}: ready", flush=True)


def create_bucket(configured: Settings, folder: Path) -> None:
    """The store's bucket, without versions."""
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    bucket = configured.store_uri.removeprefix("s3://").partition("/")[0]
    login = compose_services.store_login(folder)
    client = boto3.client(
        "s3",
        endpoint_url=configured.s3_endpoint,
        aws_access_key_id=login["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=login["AWS_SECRET_ACCESS_KEY"],
        region_name=login["AWS_DEFAULT_REGION"],
        config=Config(s3={"addressing_style": "path"}),
    )
    try:
        if bucket not in [found["Name"] for found in client.list_buckets()["Buckets"]]:
            client.create_bucket(Bucket=bucket)
    except ClientError as error:
        raise SpecError(f"the S3 server {configured.s3_endpoint} refuses the bucket {bucket!r}: {error}") from error
    except BotoCoreError as error:
        raise TransientError(f"the S3 server {configured.s3_endpoint} does not answer: {error}") from error
    print(f"bucket {bucket}: ready", flush=True)


def migrate(uri: str, environment: dict[str, str]) -> None:
    """Brings the tables of the database at `uri` to this Airflow; nothing to do if it did so before.

    Raises:
        SlipwayError: it failed; the log of this service says why.
    """
    release = metadata.version("apache-airflow")
    if _stamped(uri) == release:
        print(f"Airflow's tables: those of {release} already", flush=True)
        return
    command = [sys.executable, "-m", "airflow", "db", "migrate"]
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, timeout=MIGRATE_TIMEOUT_S, check=False)
    if done.returncode:
        raise SlipwayError(f"`airflow db migrate` failed (exit code {done.returncode}): see above")
    with _cursor(uri) as cursor:
        cursor.execute(f"CREATE TABLE IF NOT EXISTS {STAMP} (release text NOT NULL)")
        cursor.execute(f"DELETE FROM {STAMP}")
        cursor.execute(f"INSERT INTO {STAMP} VALUES (%s)", (release,))


def schedule(configured: Settings) -> None:
    """DAG files for the recipes that have a schedule."""
    for path in write_schedules(configured.home_path, known_recipes(configured.home_path).values()):
        print(f"by the clock: {path.stem}", flush=True)


def set_mlflow_password(uri: str, user: str, password: str) -> None:
    """Makes `password` the user's, if MLflow knows the user already: MLflow itself sets it at the first start only."""
    from mlflow.server.auth.sqlalchemy_store import SqlAlchemyStore

    users = SqlAlchemyStore()
    users.init_db(uri)
    if users.has_user(user) and not users.authenticate_user(user, password):
        users.update_user(user, password=password)
        print(f"MLflow's user {user} has the password of the secret now", flush=True)


def _stamped(uri: str) -> str | None:
    with _cursor(uri) as cursor:
        if not _exists(cursor, "SELECT 1 FROM pg_tables WHERE tablename = %s", STAMP):
            return None
        cursor.execute(f"SELECT release FROM {STAMP}")
        found = cursor.fetchone()
        return str(found[0]) if found else None


@contextmanager
def _cursor(uri: str) -> Iterator[Any]:
    """Of a connection whose every statement counts at once."""
    import psycopg2

    try:
        connection = psycopg2.connect(uri.replace("+psycopg2", "", 1))
    except psycopg2.OperationalError as error:
        if "authentication failed" in str(error):
            raise SpecError(f"PostgreSQL refuses the password of the secret: {error}") from error
        raise TransientError(f"PostgreSQL does not answer: {error}") from error
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            yield cursor
    finally:
        connection.close()


def _exists(cursor: Any, query: str, name: str) -> bool:
    cursor.execute(query, (name,))
    return cursor.fetchone() is not None
