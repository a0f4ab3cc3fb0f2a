"""What docker compose's services are called, where they listen, and what they sign in with.

docker-compose.yml says the same in its own language; tests/unit/stack/test_compose_file.py holds the two together.
"""

from pathlib import Path

from pipeline.settings import Settings
from pipeline.stack.layout import Ports, read_secret

EVERYWHERE = "0.0.0.0"
"""In a container, whose networks decide who can reach it."""
HOSTS = {
    "airflow": "airflow-api-server",
    "mlflow": "mlflow",
    # By its name in the fleet's network, where it speaks plain HTTP with the stack's own programs.
    "gateway": "gateway-admin",
    "gateway_admin": "gateway-admin",
    "metrics": "metrics",
}
PORTS = {"airflow": 8080, "mlflow": 5000, "gateway": 8000, "gateway_admin": 9901, "metrics": 9905}
PUBLISHED = {"airflow": 8080, "mlflow": 5000, "gateway": 8000}
"""Part to the port on loopback where people reach it, unless SLIPWAY_PORT_<PART> says another."""
POSTGRES_HOST = "postgres"
SUPERUSER = "slipway"
DATABASES = {"airflow": "airflow", "mlflow": "mlflow", "mlflow_auth": "mlflow"}
"""Database to the role that owns it. A role's password is the secret `<role>_database_password`."""
REGION = "us-east-1"
"""S3's default, which servers other than AWS accept."""
MLFLOW_USER = "admin"


def ports(settings: Settings) -> Ports:
    """What a home that containers share says about the parts."""
    public = {part: f"http://127.0.0.1:{settings.ports.get(part, port)}" for part, port in PUBLISHED.items()}
    return Ports(**PORTS, listen=EVERYWHERE, hosts=HOSTS, public=public)


def database_uri(database: str, password: str) -> str:
    """For SQLAlchemy."""
    return f"postgresql+psycopg2://{DATABASES[database]}:{password}@{POSTGRES_HOST}/{database}"


def store_login(folder: Path) -> dict[str, str]:
    """What boto3 reads. `folder` holds the secrets."""
    return {
        "AWS_ACCESS_KEY_ID": read_secret(folder, "s3_access_key"),
        "AWS_SECRET_ACCESS_KEY": read_secret(folder, "s3_secret_key"),
        "AWS_DEFAULT_REGION": REGION,
    }


def hub_login(folder: Path) -> dict[str, str]:
    """What a step needs for a base model that the hub gives to known users only; nothing if no token was given."""
    path = folder / "hf_token"
    token = path.read_text().strip() if path.exists() else ""
    return {"HF_TOKEN": token} if token else {}


def signing_login(folder: Path) -> dict[str, str]:
    """The key that signs bundles, for those who have it: the command line, and who starts the step that registers."""
    path = folder / "signing_key"
    return {"SLIPWAY_SIGNING_KEY": path.read_text().strip()} if path.exists() else {}


def mlflow_login(folder: Path) -> dict[str, str]:
    """What MLflow's client and `pipeline.settings` read."""
    return {
        "MLFLOW_TRACKING_USERNAME": MLFLOW_USER,
        "MLFLOW_TRACKING_PASSWORD": read_secret(folder, "mlflow_admin_password"),
    }
