"""The way to MLflow: a client that rides out two minutes of absence, and errors that say what to do.

MLflow is imported inside the functions: it takes seconds. Works with mlflow and with mlflow-skinny.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipeline.errors import SpecError, TransientError
from pipeline.job import Job

HTTP_RETRIES = 7
"""With a back-off of 1 s that doubles, the pauses add up to 126 s: 0, 2, 4 … 64. A restart of MLflow on a busy machine
takes a minute."""
HTTP_TIMEOUT_S = 20

_NOT_ALLOWED = (401, 403)
_SERVER_FAULTS_FROM = 500
_TOO_MANY_REQUESTS = 429
_NOT_FOUND = 404


def required_tracking_uri(job: Job) -> str:
    """Where MLflow is, for a step that cannot do without it.

    Raises:
        SpecError: nobody said.
    """
    if job.settings.tracking_uri is None:
        raise SpecError(
            f"{job.step} needs MLflow, but MLFLOW_TRACKING_URI is not set; set it to the server's address,"
            " e.g. http://127.0.0.1:5000"
        )
    return job.settings.tracking_uri


def connect(tracking_uri: str) -> Any:
    """An MlflowClient for runs and models at `tracking_uri`; says nothing to the server yet."""
    import mlflow.environment_variables as variables
    from mlflow import MlflowClient

    for variable, value in (
        (variables.MLFLOW_HTTP_REQUEST_MAX_RETRIES, HTTP_RETRIES),
        (variables.MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR, 1),
        (variables.MLFLOW_HTTP_REQUEST_TIMEOUT, HTTP_TIMEOUT_S),
        (variables.MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT, True),
    ):
        if not variable.is_set():
            variable.set(value)
    return MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)


@contextmanager
def translated_errors(tracking_uri: str) -> Iterator[None]:
    """MLflow's faults as ours.

    Raises:
        TransientError: the server did not answer in time, or answered that it cannot now.
        SpecError: it wants other credentials.
    """
    from mlflow.exceptions import MlflowException
    from requests import RequestException

    try:
        yield
    except MlflowException as error:
        status = error.get_http_status_code()
        if status in _NOT_ALLOWED:
            raise SpecError(
                f"MLflow at {tracking_uri} refused these credentials ({status}); set MLFLOW_TRACKING_USERNAME and"
                f" MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN: {error.message}"
            ) from error
        if status >= _SERVER_FAULTS_FROM or status == _TOO_MANY_REQUESTS:
            raise _unreachable(tracking_uri, error) from error
        raise
    except RequestException as error:
        raise _unreachable(tracking_uri, error) from error


@contextmanager
def missing_is_fine() -> Iterator[None]:
    """Swallows MLflow's answer that there is no such thing."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if not is_missing(error):
            raise


def is_missing(error: Any) -> bool:
    """Whether MLflow said that the thing does not exist (it calls an unknown alias a bad parameter)."""
    said: str = error.message
    return error.get_http_status_code() == _NOT_FOUND or ("alias" in said and "not found" in said)


def exists_already(error: Any) -> bool:
    return bool(error.error_code == "RESOURCE_ALREADY_EXISTS")


def quoted(text: str) -> str:
    """`text` as a string of MLflow's filter language, which knows no escapes.

    Raises:
        SpecError: it holds a quote.
    """
    if "'" in text or '"' in text:
        raise SpecError(f"{text!r} holds a quotation mark, which no name, key or tag here may; rename it")
    return f"'{text}'"


def _unreachable(tracking_uri: str, error: Exception) -> TransientError:
    return TransientError(
        f"MLflow at {tracking_uri} does not answer after {HTTP_RETRIES} retries: {error}; see that the server runs"
        " (`./slipway status`) and that this address reaches it; the step is retried"
    )
