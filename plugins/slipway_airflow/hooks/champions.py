"""Which versions MLflow's registry calls champion and serving, in one request for all models."""

from typing import TYPE_CHECKING, Any

from pipeline.contracts.base import Contract

if TYPE_CHECKING:
    import httpx

CHAMPION = "champion"
SERVING = "serving"
MAX_RESULTS = 1000
TIMEOUT_S = 10.0


class Aliases(Contract):
    """Of one registered model."""

    champion: str | None = None
    """The version that should be served."""
    serving: str | None = None
    """The version that is served."""


def open_client(tracking_uri: str, login: tuple[str, str] | None = None) -> "httpx.AsyncClient":
    """To be kept: making one reads the machine's certificates, which takes a while. `login`: user and password."""
    import httpx

    return httpx.AsyncClient(base_url=tracking_uri, auth=login, timeout=TIMEOUT_S)


async def read_aliases(client: "httpx.AsyncClient") -> dict[str, Aliases]:
    """The aliases of every registered model, by name.

    Raises:
        httpx.HTTPError: MLflow does not answer, or answers with an error.
        ValueError: the answer is no JSON.
    """
    found: dict[str, Aliases] = {}
    page: str | None = ""
    while page is not None:
        query = {"max_results": MAX_RESULTS, **({"page_token": page} if page else {})}
        answer = await client.get("/api/2.0/mlflow/registered-models/search", params=query)
        answer.raise_for_status()
        body = answer.json()
        found |= {model["name"]: _aliases(model) for model in body.get("registered_models", ())}
        page = body.get("next_page_token") or None
    return found


def _aliases(model: dict[str, Any]) -> Aliases:
    versions = {entry["alias"]: str(entry["version"]) for entry in model.get("aliases", ())}
    return Aliases(champion=versions.get(CHAMPION), serving=versions.get(SERVING))
