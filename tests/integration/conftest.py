"""The real servers that integration tests share; each starts when the first test asks for it."""

from tests.integration.mlflow_server import mlflow_server

__all__ = ["mlflow_server"]
