"""What the page asks MLflow: which versions are champion and serving, and which ones there are to choose from.

MLflow may be slow or away, and the page asks every two seconds: an answer is kept for some seconds, no answer too, and
those who ask meanwhile share one request.
"""

import asyncio
import time
from typing import TYPE_CHECKING, Any

from pipeline.contracts.base import Contract
from slipway_airflow.hooks.champions import Aliases, open_client, read_aliases

if TYPE_CHECKING:
    import httpx

KEPT_S = 3.0
TIMEOUT_S = 2.0
MAX_VERSIONS = 50
"""The newest ones are offered."""
OUTCOME_TAG, DIGEST_TAG = "slipway.rollout", "slipway.bundle_digest"


class Choice(Contract):
    """A version that a person may promote."""

    version: str
    created_at: float
    """Seconds since the epoch."""
    last_rollout: str
    """How its last one ended, as the version's tag says; empty if it had none."""


class RegistryReader:
    """One MLflow, asked from the API server's event loop."""

    def __init__(self, tracking_uri: str | None, login: tuple[str, str] | None) -> None:
        self._place = (tracking_uri, login)
        self._client: httpx.AsyncClient | None = None
        self._lock = asyncio.Lock()
        self._aliases: dict[str, Aliases] | None = None
        self._asked_at = -KEPT_S

    async def aliases(self) -> dict[str, Aliases] | None:
        """By model, at most `KEPT_S` old; None while MLflow does not answer."""
        import httpx

        async with self._lock:
            if time.monotonic() - self._asked_at >= KEPT_S:
                try:
                    async with asyncio.timeout(TIMEOUT_S):
                        self._aliases = await read_aliases(await self._open())
                except (httpx.HTTPError, TimeoutError, ValueError, KeyError):
                    self._aliases = None
                self._asked_at = time.monotonic()
            return self._aliases

    async def choices(self, name: str) -> list[Choice]:
        """The versions of `name` that Slipway registered, newest first.

        Raises:
            httpx.HTTPError: MLflow does not answer, or answers with an error.
            ValueError: `name` is none that a model can have, or the answer is no JSON.
        """
        if "'" in name and '"' in name:
            raise ValueError(f"{name!r} is no name of a model: it has both kinds of quotes")
        quote = '"' if "'" in name else "'"
        query = {"filter": f"name={quote}{name}{quote}", "max_results": "1000"}
        client = await self._open()
        answer = await client.get("/api/2.0/mlflow/model-versions/search", params=query)
        found = answer.raise_for_status().json().get("model_versions", ())
        offered = [choice for version in found if (choice := _choice(version))]
        return sorted(offered, key=lambda choice: int(choice.version), reverse=True)[:MAX_VERSIONS]

    async def _open(self) -> "httpx.AsyncClient":
        """One client for all requests. MLflow's address is known only where there is one."""
        import httpx

        tracking_uri, login = self._place
        if tracking_uri is None:
            raise httpx.ConnectError("MLFLOW_TRACKING_URI is not set for Airflow's API server: MLflow cannot be asked")
        if self._client is None:
            self._client = await asyncio.to_thread(open_client, tracking_uri, login)
        return self._client


def _choice(version: dict[str, Any]) -> Choice | None:
    """None for a version that Slipway did not register, which cannot be served."""
    tags = {tag["key"]: tag["value"] for tag in version.get("tags", ())}
    if DIGEST_TAG not in tags:
        return None
    return Choice(
        version=str(version["version"]),
        created_at=int(version["creation_timestamp"]) / 1000,
        last_rollout=tags.get(OUTCOME_TAG, ""),
    )
