"""Jobs through the agent: what runs in Airflow's own containers asks it, and holds no key to the Docker engine."""

from typing import Any

from pipeline.agent import AgentClient
from pipeline.errors import SpecError
from pipeline.settings import Settings
from slipway_airflow.backends.base import Claim, JobHandle, JobRequest, JobStatus


class AgentBackend:
    """Implements `base.Backend`."""

    def __init__(self, settings: Settings) -> None:
        if settings.agent_path is None:
            raise SpecError("SLIPWAY_BACKEND is agent, but SLIPWAY_AGENT is not set; expected the path of its socket")
        self.agent = AgentClient(settings.agent_path)

    def submit(self, request: JobRequest) -> JobHandle:
        return JobHandle.model_validate(self._call("POST", "/jobs", request.model_dump(mode="json")))

    def status(self, job_id: str) -> JobStatus:
        return JobStatus.model_validate(self._call("GET", f"/jobs/{job_id}"))

    def logs(self, job_id: str, offset: int, limit_bytes: int = 1 << 16) -> tuple[str, int]:
        text, end = self._call("GET", f"/jobs/{job_id}/log", offset=offset, limit_bytes=limit_bytes)
        return str(text), int(end)

    def cancel(self, job_id: str, claim: Claim | None = None) -> bool:
        body = claim.model_dump() if claim else None
        return bool(self._call("POST", f"/jobs/{job_id}/cancel", body))

    def claims_of(self, holder: str) -> list[tuple[str, Claim]]:
        found = self._call("GET", "/claims", holder=holder)
        return [(job_id, Claim.model_validate(claim)) for job_id, claim in found]

    def forget(self, job_id: str) -> None:
        self._call("DELETE", f"/jobs/{job_id}")

    def reap(self, keep_s: float) -> int:
        return int(self._call("POST", "/reap", keep_s=keep_s))

    def _call(self, method: str, path: str, body: Any = None, **parameters: str | int | float) -> Any:
        return self.agent.call(method, path, body, **parameters)
