"""Digests of the audit log in MLflow: whoever replaces the whole log has to change the registry's database, too.

Each promotion by a rollout leaves one at the version that it promoted, as the tag `slipway.audit`.
"""

from collections.abc import Container
from pathlib import Path
from typing import Protocol

from pydantic import ValidationError

from pipeline import audit
from pipeline.errors import IntegrityError
from pipeline.registry.models import Registry

AUDIT_TAG = "slipway.audit"
"""Number and digest of the newest entry at that moment."""


class Tags(Protocol):
    """What an anchor needs of the registry."""

    def tag(self, name: str, version: str, key: str, value: str) -> None: ...


def drop_anchor(registry: Tags, home_path: Path, name: str, version: str) -> None:
    """Keeps the newest entry's digest at `version`. Raises TransientError: MLflow does not answer."""
    head = audit.newest(home_path)
    registry.tag(name, version, AUDIT_TAG, f"{head.number} {head.digest}")


def anchors(registry: Registry, models: Container[str]) -> list[audit.Anchor]:
    """Every digest that MLflow keeps at versions of `models`. Others may be another fleet's, with a log of its own.

    Raises:
        IntegrityError: a tag holds no digest of the log.
        TransientError: it does not answer.
    """
    return [
        _anchor(found.tags[AUDIT_TAG], f"{name} version {found.version} in MLflow")
        for name in registry.names()
        if name in models
        for found in registry.versions(name)
        if AUDIT_TAG in found.tags
    ]


def _anchor(text: str, where: str) -> audit.Anchor:
    number, _, digest = text.partition(" ")
    try:
        return audit.Anchor.model_validate({"number": number, "digest": digest, "where": where})
    except ValidationError as error:
        raise IntegrityError(
            f"the tag {AUDIT_TAG} of {where} is {text!r}, expected the number of an entry and its digest: somebody has"
            " changed it, so what it kept of the log cannot be compared"
        ) from error
