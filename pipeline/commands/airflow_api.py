"""What the command line asks of Airflow, over its REST API."""

import time
from typing import Any

import httpx

from pipeline.contracts.base import ArtifactRef
from pipeline.errors import SpecError, TransientError
from pipeline.stack import airflow_part
from pipeline.stack.layout import Layout

TIMEOUT_S = 30.0
RETRY_S = 1.0
PATIENCE_S = 120.0
"""How long a silent Airflow is waited for: it may be starting anew."""
PAGE = 100
"""Airflow gives so many of a list at once."""
NOT_READY = (500, 502, 503, 504)
"""Its database may be starting anew, too."""


class AirflowApi:
    """A client that logs in by itself and outwaits a restart of Airflow."""

    def __init__(self, layout: Layout) -> None:
        self.base_url = airflow_part.base_url(layout)
        self._credentials = layout.access()
        self._client = httpx.Client(base_url=self.base_url, timeout=TIMEOUT_S, trust_env=False)
        self._token = ""

    def is_up(self) -> bool:
        try:
            return self._client.get("/api/v2/monitor/health").status_code == 200
        except httpx.TransportError:
            return False

    def await_dag(self, dag_id: str) -> None:
        """Waits until Airflow knows the DAG.

        Raises:
            SpecError: it does not come; the message has the import errors, if there are any.
        """
        deadline = time.monotonic() + PATIENCE_S
        while self._request("GET", f"/dags/{dag_id}", missing_is_fine=True) is None:
            if time.monotonic() > deadline:
                errors = self._request("GET", "/importErrors")["import_errors"]
                said = "\n".join(f"{error['filename']}: {error['stack_trace']}" for error in errors)
                raise SpecError(
                    f"Airflow knows no DAG {dag_id}. {said or 'See `./slipway logs airflow-dag-processor`'}"
                )
            time.sleep(RETRY_S)

    def trigger(self, dag_id: str, run_id: str, conf: dict[str, Any]) -> None:
        """Starts a run; harmless to repeat with the same id.

        Raises:
            SpecError: Airflow refuses the parameters.
        """
        body = {"dag_run_id": run_id, "logical_date": None, "conf": conf}
        answer = self._send("POST", f"/dags/{dag_id}/dagRuns", body)
        if answer.status_code not in (200, 201, 409):
            raise SpecError(f"Airflow refused to start {dag_id}: {_detail(answer)}")

    def run_state(self, dag_id: str, run_id: str) -> str:
        """queued, running, success or failed; "" if there is no such run."""
        run = self._request("GET", f"/dags/{dag_id}/dagRuns/{run_id}", missing_is_fine=True)
        return str(run["state"]) if run else ""

    def tasks(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """The task instances of a run, as Airflow gives them."""
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances?limit={PAGE}"
        found: list[dict[str, Any]] = []
        while True:
            page: list[dict[str, Any]] = self._request("GET", f"{path}&offset={len(found)}")["task_instances"]
            found += page
            if len(page) < PAGE:
                return found

    def artifact(self, dag_id: str, run_id: str, task_id: str) -> ArtifactRef | None:
        """What a step's task made, from its XCom; None if it made nothing."""
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/xcomEntries/return_value"
        entry = self._request("GET", f"{path}?stringify=false", missing_is_fine=True)
        return ArtifactRef.model_validate(entry["value"]) if entry else None

    def run_url(self, dag_id: str, run_id: str) -> str:
        return f"{self.base_url}/dags/{dag_id}/runs/{run_id}"

    def _request(self, method: str, path: str, *, missing_is_fine: bool = False) -> Any:
        answer = self._send(method, path)
        if answer.status_code == 404 and missing_is_fine:
            return None
        if answer.status_code != 200:
            raise TransientError(f"Airflow answered {answer.status_code} to {method} {path}: {_detail(answer)}")
        return answer.json()

    def _send(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                answer = self._send_once(method, path, body)
                if answer.status_code not in NOT_READY:
                    return answer
                problem = f"HTTP {answer.status_code}"
            except httpx.TransportError as error:
                problem = str(error) or type(error).__name__
            if time.monotonic() > deadline:
                raise TransientError(f"Airflow at {self.base_url} does not answer ({problem}): run `./slipway up`")
            time.sleep(RETRY_S)

    def _send_once(self, method: str, path: str, body: dict[str, Any] | None) -> httpx.Response:
        if not self._token:
            self._log_in()
        answer = self._client.request(method, f"/api/v2{path}", json=body, headers=self._headers())
        if answer.status_code == 401:
            self._log_in()
            answer = self._client.request(method, f"/api/v2{path}", json=body, headers=self._headers())
        return answer

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._token}"}

    def _log_in(self) -> None:
        who = {"username": self._credentials.airflow_user, "password": self._credentials.airflow_password}
        answer = self._client.post("/auth/token", json=who)
        if answer.status_code in NOT_READY:
            raise httpx.ConnectError(f"HTTP {answer.status_code}")
        if answer.status_code != 201:
            raise SpecError(f"Airflow at {self.base_url} refuses the credentials of this home: {_detail(answer)}")
        self._token = answer.json()["access_token"]


def _detail(answer: httpx.Response) -> str:
    try:
        return str(answer.json().get("detail", answer.text))
    except ValueError:
        return answer.text[:500]
