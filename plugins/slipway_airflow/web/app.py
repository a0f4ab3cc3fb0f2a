"""The page's application: HTML, its script and style, and the JSON that the script asks for.

    GET /slipway/fleet                the page
    GET /slipway/static/NAME          script, style, icons
    GET /slipway/api/fleet            everything that the page shows
    GET /slipway/api/versions?model=  what can be promoted
    GET /slipway/api/trace?request_id=  what an answer was made of
    POST /slipway/api/press           promote, pause, resume, roll back

Runs in Airflow's API server. Every route asks who calls (`access`).
"""

import asyncio
from pathlib import Path
from typing import Annotated, Any

from airflow.api_fastapi.app import get_cookie_path
from airflow.models.dagrun import DagRun
from airflow.utils.session import create_session
from fastapi import FastAPI, HTTPException, Query, Request, Response, status
from fastapi.responses import FileResponse, JSONResponse
from sqlalchemy import select

from pipeline import settings
from pipeline.contracts.base import Contract
from pipeline.contracts.trace import Trace
from pipeline.errors import DataError, SlipwayError, SpecError
from pipeline.stack.layout import Layout
from slipway_airflow.triggers.champion import DAG_ID
from slipway_airflow.web import access, traces, views
from slipway_airflow.web.presses import Press
from slipway_airflow.web.registry import Choice, RegistryReader

STATIC = Path(__file__).with_name("static")
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src"
    " 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
"""Nothing but our own files runs in the page, and nobody but Airflow frames it."""


def make_app() -> FastAPI:
    """The application. Without FastAPI's own pages, which would answer anybody."""
    configured = settings.load()
    app = FastAPI(title="Slipway's fleet", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.layout = Layout(configured.home_path)
    app.state.making_ready = None
    app.state.registry = RegistryReader(configured.tracking_uri, configured.tracking_login)
    app.middleware("http")(_add_headers)
    app.exception_handler(SlipwayError)(_refuse)
    reading = [access.READING]
    app.get("/fleet", dependencies=reading)(page)
    app.get("/static/{name}", dependencies=reading)(static)
    app.get("/api/fleet", dependencies=reading)(fleet)
    app.get("/api/versions", dependencies=reading)(versions)
    app.get("/api/trace", dependencies=reading)(trace)
    app.post("/api/press", dependencies=[access.SAME_ORIGIN, access.EDITING])(press)
    return app


async def _add_headers(request: Request, call_next: Any) -> Response:
    response: Response = await call_next(request)
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    return response


async def _refuse(request: Request, error: Exception) -> JSONResponse:
    """An error of Slipway's, as the page shows it: 422 for what was asked wrongly, 503 for what may pass."""
    asked_wrongly = isinstance(error, SpecError | DataError)
    return JSONResponse({"detail": str(error)}, status_code=422 if asked_wrongly else 503)


async def page() -> FileResponse:
    return _file("fleet.html")


async def static(name: str) -> FileResponse:
    return _file(name)


def _file(name: str) -> FileResponse:
    """One of the files beside this module, and no other."""
    known = {path.name: path for path in STATIC.iterdir()}
    if name not in known:
        raise HTTPException(status.HTTP_404_NOT_FOUND, f"the page has no file {name!r}")
    return FileResponse(known[name], media_type=TYPES[known[name].suffix])


async def fleet(request: Request, user: access.User) -> views.FleetPage:
    """Everything that the page shows, to `user`."""
    layout: Layout = request.app.state.layout
    seen = await asyncio.to_thread(views.look, layout.home_path)
    aliases = await request.app.state.registry.aliases()
    asked = {rollout.request_id for model in seen.fleet.models.values() for rollout in model.history}
    ports = layout.ports() if layout.stack_path.exists() else None
    links = views.Links(
        airflow_path=get_cookie_path(),
        mlflow_url=ports.public_url("mlflow") if ports else settings.load().tracking_uri,
        run_ids=await asyncio.to_thread(runs_there_are, asked),
    )
    may_press = await asyncio.to_thread(access.may_press, user)
    if may_press and request.app.state.making_ready is None:
        request.app.state.making_ready = asyncio.create_task(asyncio.to_thread(_make_ready))
    return views.fleet_page(
        seen,
        aliases,
        links,
        user=user.get_name(),
        may_press=may_press,
        gateway_url=ports.public_url("gateway") if ports else None,
    )


def _make_ready() -> None:
    from slipway_airflow.web import actions

    actions.make_ready()


async def versions(request: Request, model: Annotated[str, Query(min_length=1, max_length=200)]) -> list[Choice]:
    """The versions of `model` that can be promoted, newest first."""
    import httpx

    try:
        choices: list[Choice] = await request.app.state.registry.choices(model)
    except (httpx.HTTPError, ValueError) as error:
        raise HTTPException(
            status.HTTP_503_SERVICE_UNAVAILABLE, f"MLflow gives no versions of {model}: {error}"
        ) from error
    return choices


async def trace(request_id: Annotated[str, Query(pattern=r"^[0-9A-Za-z._-]{1,128}$")]) -> Trace:
    """From one request to the data that its answer was learned from."""
    return await traces.find(request_id)


class Pressed(Contract):
    """What came of a press."""

    said: str


async def press(request: Request, user: access.User, wanted: Press) -> Pressed:
    """Does what `user` confirmed, in a thread, and answers when it is done."""
    from slipway_airflow.web import actions

    layout: Layout = request.app.state.layout
    return Pressed(said=await asyncio.to_thread(actions.perform, layout, wanted, by=user.get_name()))


def runs_there_are(run_ids: set[str]) -> set[str]:
    """Those of `run_ids` that Airflow has a run of the rollout DAG for."""
    if not run_ids:
        return set()
    with create_session() as session:
        query = select(DagRun.run_id).where(DagRun.dag_id == DAG_ID, DagRun.run_id.in_(run_ids))
        return set(session.scalars(query))
