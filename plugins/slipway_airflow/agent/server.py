"""The agent's requests over HTTP: jobs as `backends.base.Backend` has them, replicas as `pipeline.fleet.replicas` has.

GET    /health                    POST   /replicas/places  {count, taken}
POST   /jobs                      PUT    /replicas/NAME
GET    /jobs/ID                   DELETE /replicas/NAME
GET    /jobs/ID/log               GET    /replicas
POST   /jobs/ID/cancel            POST   /replicas/NAME/restart
DELETE /jobs/ID                   POST   /reap
GET    /claims                    GET    /replicas/NAME/activity
                                  POST   /replicas/memory  [NAME, …]
"""

from typing import Annotated, Any, Protocol

from fastapi import Body, FastAPI, Request
from fastapi.responses import JSONResponse

from pipeline.agent import describe
from pipeline.contracts.base import Contract
from pipeline.errors import EXIT_BAD_DATA, EXIT_BAD_SPEC, EXIT_TRANSIENT, SlipwayError
from pipeline.fleet.capacity import Memory
from pipeline.fleet.replica_processes import Activity
from pipeline.fleet.replicas import Place, ReplicaHost, ReplicaState
from pipeline.fleet.vllm import ReplicaPlan
from pipeline.settings import Settings
from slipway_airflow.agent.vocabulary import check_name, check_plan, check_request
from slipway_airflow.backends.base import Backend, Claim, JobHandle, JobId, JobRequest, JobStatus

HTTP_STATUS = {EXIT_BAD_SPEC: 400, EXIT_BAD_DATA: 422, EXIT_TRANSIENT: 503}


class Wanted(Contract):
    """How many places for replicas, and the addresses that are given already."""

    count: int
    taken: tuple[str, ...]


class ContainerHost(ReplicaHost, Protocol):
    """Also says what replicas do, and starts them anew: `pipeline.fleet.replica_processes` asks for it."""

    def activity(self, name: str) -> Activity: ...

    def restart(self, name: str, *, at_once: bool) -> None: ...


def agent_app(settings: Settings, jobs: Backend, replicas: ContainerHost) -> FastAPI:
    """The agent over `jobs` and `replicas`."""
    app = FastAPI(title="Slipway's agent", openapi_url=None)
    app.add_exception_handler(SlipwayError, _refuse)
    _add_jobs(app, settings, jobs)
    _add_replicas(app, settings, replicas)

    @app.get("/health")
    def health() -> dict[str, int]:
        """Asks the engine, too: an agent without one is of no use."""
        return {"replicas": len(replicas.states())}

    return app


def _add_jobs(app: FastAPI, settings: Settings, jobs: Backend) -> None:
    @app.post("/jobs")
    def submit(request: JobRequest) -> JobHandle:
        check_request(request, settings)
        return jobs.submit(request)

    @app.get("/jobs/{job_id}")
    def status(job_id: JobId) -> JobStatus:
        return jobs.status(job_id)

    @app.get("/jobs/{job_id}/log")
    def log(job_id: JobId, offset: int, limit_bytes: int) -> tuple[str, int]:
        return jobs.logs(job_id, offset, limit_bytes)

    @app.post("/jobs/{job_id}/cancel")
    def cancel(job_id: JobId, claim: Annotated[Claim | None, Body()] = None) -> bool:
        return jobs.cancel(job_id, claim)

    @app.delete("/jobs/{job_id}")
    def forget(job_id: JobId) -> None:
        jobs.forget(job_id)

    @app.get("/claims")
    def claims(holder: str) -> list[tuple[str, Claim]]:
        return jobs.claims_of(holder)

    @app.post("/reap")
    def reap(keep_s: float) -> int:
        return jobs.reap(keep_s)


def _add_replicas(app: FastAPI, settings: Settings, replicas: ContainerHost) -> None:
    @app.post("/replicas/places")
    def places(wanted: Wanted) -> list[Place]:
        return replicas.places(wanted.count, set(wanted.taken))

    @app.post("/replicas/memory")
    def memory(names: Annotated[list[str], Body()]) -> Memory:
        for name in names:
            check_name(name)
        return replicas.memory(names)

    @app.put("/replicas/{name}")
    def put(name: str, plan: ReplicaPlan) -> None:
        check_plan(name, plan, settings)
        replicas.put(plan)

    @app.delete("/replicas/{name}")
    def remove(name: str, at_once: bool = False) -> None:
        check_name(name)
        replicas.remove(name, at_once=at_once)

    @app.get("/replicas/{name}/activity")
    def activity(name: str) -> Activity:
        check_name(name)
        return replicas.activity(name)

    @app.post("/replicas/{name}/restart")
    def restart(name: str, at_once: bool) -> None:
        check_name(name)
        replicas.restart(name, at_once=at_once)

    @app.get("/replicas")
    def states() -> dict[str, ReplicaState]:
        return replicas.states()


async def _refuse(_request: Request, error: Any) -> JSONResponse:
    return JSONResponse(describe(error), HTTP_STATUS.get(error.exit_code, 500))
