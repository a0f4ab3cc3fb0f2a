"""MLflow's faults as ours."""

import pytest
from mlflow.exceptions import MlflowException, RestException
from requests import ConnectionError as RequestsConnectionError

from pipeline.errors import SpecError, TransientError
from pipeline.registry.connection import missing_is_fine, quoted, translated_errors

URI = "http://mlflow.example:5000"
FAULTS = {
    "a server that is away": (RequestsConnectionError("refused"), TransientError, "does not answer"),
    "a request that was given up": (MlflowException("API request failed"), TransientError, "does not answer"),
    "a server that is overloaded": (RestException({"error_code": "RESOURCE_EXHAUSTED"}), TransientError, "retries"),
    "wrong credentials": (RestException({"error_code": "UNAUTHENTICATED"}), SpecError, "MLFLOW_TRACKING_USERNAME"),
    "no permission": (RestException({"error_code": "PERMISSION_DENIED"}), SpecError, "MLFLOW_TRACKING_TOKEN"),
}


@pytest.mark.parametrize(("fault", "kind", "advice"), FAULTS.values(), ids=FAULTS)
def test_a_fault_names_the_server_and_what_to_do(fault: Exception, kind: type[Exception], advice: str) -> None:
    """And has the exit code that makes the operator retry, or not."""
    with pytest.raises(kind, match=advice) as caught, translated_errors(URI):
        raise fault
    assert URI in str(caught.value)


def test_a_request_that_is_wrong_stays_a_bug() -> None:
    """It is neither retried nor blamed on the user."""
    with pytest.raises(MlflowException), translated_errors(URI):
        raise RestException({"error_code": "INVALID_PARAMETER_VALUE", "message": "no such column"})


def test_only_the_answer_that_nothing_is_there_is_fine() -> None:
    """Any other refusal passes on."""
    with missing_is_fine():
        raise RestException({"error_code": "RESOURCE_DOES_NOT_EXIST"})
    with pytest.raises(MlflowException), missing_is_fine():
        raise RestException({"error_code": "PERMISSION_DENIED"})


def test_a_quotation_mark_cannot_change_a_filter() -> None:
    """MLflow's filter language has no escapes."""
    assert quoted("intents") == "'intents'"
    with pytest.raises(SpecError, match="quotation mark"):
        quoted("x' OR name = 'y")
