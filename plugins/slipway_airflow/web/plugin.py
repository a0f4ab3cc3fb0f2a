"""How Airflow's UI comes to the page: an application of its own, and the entry in the navigation that frames it.

Airflow loads its plugins in every process and asks for the applications in the API server alone, so the application is
made at its first request.
"""

from typing import Any

PREFIX = "/slipway"
"""Where the API server mounts the application."""


class FleetApp:
    """The ASGI application; what it is made of is imported when it is first asked."""

    def __init__(self) -> None:
        self._made: Any = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self._made is None:
            from slipway_airflow.web.app import make_app

            self._made = make_app()
        await self._made(scope, receive, send)


FASTAPI_APPS = [{"app": FleetApp(), "url_prefix": PREFIX, "name": "Slipway's fleet"}]
EXTERNAL_VIEWS = [
    {
        "name": "Fleet",
        # Without a slash in front: relative to where Airflow is served from.
        "href": f"{PREFIX.removeprefix('/')}/fleet",
        "icon": f"{PREFIX.removeprefix('/')}/static/fleet.svg",
        "icon_dark_mode": f"{PREFIX.removeprefix('/')}/static/fleet-dark.svg",
        "url_route": "fleet",
        "destination": "nav",
        "nav_top_level": True,
    }
]
"""What `AirflowPlugin.external_views` wants. https://airflow.apache.org/docs/apache-airflow/stable/administration-and-deployment/plugins.html"""
