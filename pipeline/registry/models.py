"""The model registry: versions, their tags, and the aliases that say what should be served and what is.

A version holds no weights: its tags name the bundle in the artifact store by digest, and the registration artifact
that describes it. Works on MLflow's registry through its client, which is imported when it is first needed.

Aliases: `champion` should be served, `serving` is served.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline import artifacts, settings
from pipeline.contracts.base import ArtifactRef, Contract, ModelRef
from pipeline.contracts.recipe import Recipe
from pipeline.contracts.specs import RegisterResult, RegisterSpec
from pipeline.errors import DataError, IntegrityError, SpecError
from pipeline.registry.connection import (
    connect,
    exists_already,
    is_missing,
    missing_is_fine,
    quoted,
    translated_errors,
)
from pipeline.registry.locks import file_lock

CHAMPION = "champion"
SERVING = "serving"

KEY_TAG = "slipway.key"
BUNDLE_DIGEST_TAG = "slipway.bundle_digest"
REGISTRATION_TAG = "slipway.registration"
"""URI of the registration artifact."""
SIGNATURE_TAG = "slipway.signature"
"""A DSSE envelope: who vouches for the bundle (pipeline/signing/bundles.py)."""


class VersionSummary(Contract):
    """A version as the registry alone knows it."""

    name: str
    version: str
    created_at: str
    """UTC, ISO 8601"""
    run_id: str | None
    tags: dict[str, str]


class RegisteredVersion(VersionSummary):
    """A version together with what its registration artifact says."""

    bundle: ModelRef
    bundle_digest: str
    registration: ArtifactRef
    recipe: Recipe


class Registry:
    """The models in one MLflow server. Every method may raise TransientError: MLflow does not answer."""

    def __init__(self, tracking_uri: str, home_path: Path | None = None) -> None:
        self.tracking_uri = tracking_uri
        self.home_path = home_path or settings.load().home_path
        self._locks_path = self.home_path / "locks"

    @cached_property
    def _client(self) -> Any:
        return connect(self.tracking_uri)

    # --- reading ---------------------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """Every registered model, sorted."""
        with translated_errors(self.tracking_uri):
            return sorted(model.name for model in _every_page(self._client.search_registered_models))

    def versions(self, name: str) -> list[VersionSummary]:
        """Every version of `name`, oldest first; none if the model is unknown."""
        with translated_errors(self.tracking_uri):
            found = _every_page(self._client.search_model_versions, filter_string=f"name = {quoted(name)}")
        return [_summary(version) for version in sorted(found, key=lambda version: int(version.version))]

    def alias(self, name: str, alias: str) -> str | None:
        """The version that `alias` names; None if there is no such alias (or no such model)."""
        from mlflow.exceptions import MlflowException

        with translated_errors(self.tracking_uri):
            try:
                return str(self._client.get_model_version_by_alias(name, alias).version)
            except MlflowException as error:
                if is_missing(error):
                    return None
                raise

    def summary(self, name: str, version: str) -> VersionSummary:
        """One version as the registry alone knows it.

        Raises:
            SpecError: there is no such version.
        """
        from mlflow.exceptions import MlflowException

        if not version.isdecimal():
            raise SpecError(f"{version!r} is no version of {name}; expected a number such as 3")
        with translated_errors(self.tracking_uri):
            try:
                return _summary(self._client.get_model_version(name, version))
            except MlflowException as error:
                if not is_missing(error):
                    raise
        known = ", ".join(found.version for found in self.versions(name)) or "none"
        raise SpecError(f"{name} has no version {version} in MLflow at {self.tracking_uri}; it has: {known}")

    def get(self, name: str, version: str) -> RegisteredVersion:
        """A version with its bundle and recipe, read from the registration artifact and checked against the tags.

        Raises:
            SpecError: there is no such version.
            DataError: it was not registered by Slipway.
            IntegrityError: its registration artifact is missing, was altered, or is another version's.
        """
        summary = self.summary(name, version)
        uri, digest = summary.tags.get(REGISTRATION_TAG), summary.tags.get(BUNDLE_DIGEST_TAG)
        if uri is None or digest is None:
            raise DataError(
                f"{name} version {version} was not registered by Slipway: it has no tags {REGISTRATION_TAG} and"
                f" {BUNDLE_DIGEST_TAG}; run a release, which registers a version with its bundle"
            )
        manifest = artifacts.read_manifest(uri)
        spec, result = RegisterSpec.model_validate(manifest.spec), RegisterResult.model_validate(manifest.result)
        expected = RegisterResult(name=name, version=version, bundle_digest=digest)
        if result != expected:
            raise IntegrityError(f"{uri} describes {result}, but the registry's tags say {expected}; release it again")
        return RegisteredVersion(
            **summary.model_dump(),
            bundle=spec.bundle,
            bundle_digest=digest,
            registration=manifest.ref(uri),
            recipe=spec.recipe,
        )

    # --- writing ---------------------------------------------------------------------------------------------------

    def create(
        self, name: str, *, key: str, source: str, run_id: str, tags: Mapping[str, str], description: str
    ) -> VersionSummary:
        """The version of `name` that is tagged with `key`, created unless it exists.

        MLflow writes a version together with its tags, so no crash leaves a version without its key. A request that
        was repeated after a lost answer leaves two; all callers agree on the older one and delete the other.
        """
        with self._lock(name), translated_errors(self.tracking_uri):
            self._ensure_model(name)
            found = self._with_key(name, key)
            if not found:
                self._client.create_model_version(
                    name, source, run_id, tags={**tags, KEY_TAG: key}, description=description, await_creation_for=60
                )
                found = self._with_key(name, key)
            for surplus in found[1:]:
                with missing_is_fine():
                    self._client.delete_model_version(name, surplus.version)
            return found[0]

    def describe(self, name: str, text: str) -> None:
        """Gives the model a description in Markdown, unless it has one: a person may have written it."""
        with self._lock(name), translated_errors(self.tracking_uri):
            if not self._client.get_registered_model(name).description:
                self._client.update_registered_model(name, text)

    def tag(self, name: str, version: str, key: str, value: str) -> None:
        with translated_errors(self.tracking_uri):
            self._client.set_model_version_tag(name, version, key, value)

    def delete_tag(self, name: str, version: str, key: str) -> None:
        """Harmless to repeat."""
        with translated_errors(self.tracking_uri), missing_is_fine():
            self._client.delete_model_version_tag(name, version, key)

    def set_alias(self, name: str, alias: str, version: str) -> None:
        """Points `alias` at `version`, whatever it named before."""
        with self._lock(name), translated_errors(self.tracking_uri):
            self._client.set_registered_model_alias(name, alias, version)

    def delete_alias(self, name: str, alias: str) -> None:
        """Harmless to repeat."""
        with self._lock(name), translated_errors(self.tracking_uri), missing_is_fine():
            self._client.delete_registered_model_alias(name, alias)

    def compare_and_set_alias(self, name: str, alias: str, expected: str | None, version: str | None) -> bool:
        """Points `alias` at `version` (None: removes it) if it names `expected` now. True if it then does.

        MLflow has no such operation. Between Slipway's processes of one machine a file lock makes it one. Someone
        else (MLflow's page, another machine) can still write in the few milliseconds between our look and our
        write, and is then overwritten; the look afterwards finds whoever wrote after us, and reports False.
        """
        with self._lock(name):
            if self.alias(name, alias) != expected:
                return False
            with translated_errors(self.tracking_uri):
                if version is not None:
                    self._client.set_registered_model_alias(name, alias, version)
                elif expected is not None:
                    with missing_is_fine():
                        self._client.delete_registered_model_alias(name, alias)
            return self.alias(name, alias) == version

    def _lock(self, name: str) -> Any:
        return file_lock(self._locks_path / f"registry-{name}.lock")

    def _ensure_model(self, name: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if not exists_already(error):
                raise

    def _with_key(self, name: str, key: str) -> list[VersionSummary]:
        return [found for found in self.versions(name) if found.tags.get(KEY_TAG) == key]


def finetuned_model(tracking_uri: str, name: str, version: str) -> ModelRef:
    """The unquantized model behind a registered version.

    Args:
        version: a number, or an alias with @ before it.

    Raises:
        SpecError: there is no such version.
        DataError: it was not registered by Slipway.
    """
    registry = Registry(tracking_uri)
    number = registry.alias(name, version.removeprefix("@")) if version.startswith("@") else version
    if number is None:
        raise SpecError(f"{name} has no alias {version.removeprefix('@')} in MLflow at {tracking_uri}")
    found = registry.get(name, number)
    return ModelRef(artifact=RegisterSpec.model_validate(artifacts.read_manifest(found.registration).spec).finetuned)


def _every_page(search: Any, **arguments: Any) -> list[Any]:
    page = search(**arguments)
    found = list(page)
    while page.token:
        page = search(**arguments, page_token=page.token)
        found += page
    return found


def _summary(version: Any) -> VersionSummary:
    created = datetime.fromtimestamp(version.creation_timestamp / 1000, UTC)
    return VersionSummary(
        name=version.name,
        version=str(version.version),
        created_at=created.isoformat(timespec="seconds"),
        run_id=version.run_id or None,
        tags=dict(version.tags),
    )
