"""Where one answer came from: what `slipway trace` finds and a page can show. Every part is None where nobody knows,
and `missing` then says why."""

from typing import Any

from pydantic import Field

from pipeline.contracts.base import Contract


class Request(Contract):
    """One request as the gateway saw it. The gateway keeps no body."""

    request_id: str
    at: float
    """Seconds since 1970."""
    status: int
    duration_ms: float | None
    client: str | None
    """The name of its key."""
    path: str | None
    model: str | None
    """As the request named it."""
    version: str | None
    """As the replica that answered says; None if none did."""
    deployment: int | None
    """Generation of the rollout that started that replica."""
    upstream: str | None
    """The replica's address."""
    attempts: int | None
    """How many replicas were asked."""
    details: str | None
    """Envoy's word for how it ended, e.g. `via_upstream`."""
    log_path: str


class RolloutSeen(Contract):
    """One rollout, from the fleet's state or, when that has forgotten it, from the audit log."""

    generation: int
    version: str
    previous: str | None
    by: str
    """Who moved the alias; `unknown` where MLflow was used directly."""
    why: str
    """What that person, or the gates, said."""
    outcome: str
    reason: str
    """Why it ended so."""
    started_at: float
    """Seconds since 1970."""
    ended_at: float | None
    url: str | None
    """Of its run in Airflow."""
    bundle_digest: str | None
    """Of what its replicas loaded."""
    entries: tuple[int, ...]
    """Their numbers in the audit log."""
    known_from: str


class Moment(Contract):
    """What was served when the request came, by the audit log."""

    generation: int
    """The newest rollout then; another one than the deployment's while it was under way, or after a rollback."""
    shares: dict[str, int]
    """Per cent of the traffic by version."""


class VersionSeen(Contract):
    """The registered version."""

    name: str
    version: str
    created_at: str
    url: str
    bundle_uri: str
    bundle_digest: str
    registration_uri: str


class RunSeen(Contract):
    """What one step did on the way to the version."""

    step: str
    artifact_uri: str
    digest: str
    started_at: str
    duration_s: float
    code_version: str
    run_id: str | None
    """In MLflow; None if the step logged nothing there."""
    url: str | None


class RecipeSeen(Contract):
    """What was asked for."""

    name: str
    digest: str
    base_model: str
    method: str
    recipe: dict[str, Any]
    """All of it, as it was resolved."""


class Quantization(Contract):
    """Which form was chosen, and why."""

    scheme: str
    reason: str
    recovery: str
    size_bytes: int
    tried: tuple[str, ...]
    """A sentence for each form that was tried."""
    artifact_uri: str


class ValidationSeen(Contract):
    """The data set, and the report of its checks."""

    rules: int
    train_rows: int
    eval_rows: int
    report_uri: str | None
    """None if the artifact holds no report."""
    artifact_uri: str
    artifact_digest: str
    """Of the validated rows: the digest that the version's tag `slipway.dataset_digest` names."""
    train_uri: str
    train_digest: str
    """sha256 of the file that the recipe named."""
    eval_uri: str
    eval_digest: str


class Trace(Contract):
    """From one request to the data that the answer was learned from."""

    request: Request
    rollout: RolloutSeen | None = None
    """The one that started the replica."""
    moment: Moment | None = None
    version: VersionSeen | None = None
    runs: tuple[RunSeen, ...] = ()
    recipe: RecipeSeen | None = None
    quantization: Quantization | None = None
    validation: ValidationSeen | None = None
    missing: tuple[str, ...] = Field(default=())
    """What could not be found, and why."""
