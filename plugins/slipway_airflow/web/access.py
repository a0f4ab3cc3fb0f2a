"""Who may see the page and who may press its buttons: what Airflow's own auth manager says of the DAG `rollout`.

Airflow serves a plugin's application without asking who calls, so every route here asks: reading needs the permission
to read that DAG, pressing the one to edit it. A browser sends Airflow's cookie with whatever page asks it to, so a
press must besides come from a page of this very origin.
"""

from urllib.parse import urlsplit

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.base_user import BaseUser
from airflow.api_fastapi.auth.managers.models.resource_details import DagDetails
from airflow.api_fastapi.core_api.security import GetUserDep, requires_access_dag
from airflow.configuration import conf
from fastapi import Depends, HTTPException, Request, status

from slipway_airflow.triggers.champion import DAG_ID

PRESS_HEADER = "x-slipway-press"
"""A form cannot send it, and a script of another origin only if this one let it: it never does."""

READING = Depends(requires_access_dag(method="GET", param_dag_id=DAG_ID))
EDITING = Depends(requires_access_dag(method="PUT", param_dag_id=DAG_ID))


def may_press(user: BaseUser) -> bool:
    """Whether the page shows `user` its buttons."""
    return get_auth_manager().is_authorized_dag(method="PUT", details=DagDetails(id=DAG_ID), user=user)


def from_our_page(request: Request) -> None:
    """Refuses what another site has made the user's browser send.

    Source: OWASP's Cross-Site Request Forgery Prevention Cheat Sheet, "Employing custom request headers" and
    "Verifying origin with standard headers".

    Raises:
        HTTPException: 403, it does not come from the page.
    """
    origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site", "same-origin")
    ours = {request.headers.get("host"), urlsplit(conf.get("api", "base_url", fallback="")).netloc}
    if request.headers.get(PRESS_HEADER) != "1":
        raise HTTPException(
            status.HTTP_403_FORBIDDEN, f"the header {PRESS_HEADER}: 1 is missing: use the page's buttons"
        )
    if site != "same-origin" or (origin is not None and urlsplit(origin).netloc not in ours):
        raise HTTPException(
            status.HTTP_403_FORBIDDEN,
            f"the request comes from {origin or site}, expected a page of {request.headers.get('host')}: open the page"
            " Fleet in Airflow and press there",
        )


SAME_ORIGIN = Depends(from_our_page)
User = GetUserDep
