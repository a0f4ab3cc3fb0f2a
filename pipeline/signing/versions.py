"""Signing and checking a registered version by hand, against the registry and the store."""

from dataclasses import dataclass

from pipeline import artifacts
from pipeline.errors import BundleRefused, GateRefused, IntegrityError
from pipeline.registry.bundles import inspect_bundle
from pipeline.registry.models import SIGNATURE_TAG, RegisteredVersion, Registry
from pipeline.settings import Settings
from pipeline.signing import bundles, keys
from pipeline.stack import mlflow_part
from pipeline.stack.layout import Layout


@dataclass(frozen=True)
class Verified:
    """A version that may be loaded."""

    version: RegisteredVersion
    key_id: str
    files: int


def sign_version(configured: Settings, name: str, version: str) -> str:
    """Signs a version whose bundle is the registered one. Harmless to repeat.

    Returns:
        The id of the key.

    Raises:
        SpecError: there is no such version, or no key here.
        BundleRefused: the bundle's bytes are not those that were registered, or may run code.
    """
    registry, found = _look_up(configured, name, version)
    key = keys.signing_key(configured)
    folder = artifacts.fetch(found.bundle.artifact, configured.cache_path) / found.bundle.path
    try:
        files, digest = inspect_bundle(folder)
    except GateRefused as error:
        raise BundleRefused(f"{name} version {version} is not signed: {error}") from error
    if digest != found.bundle_digest:
        raise IntegrityError(
            f"{name} version {version} is not signed: its bundle at {found.bundle.artifact.uri} has digest {digest},"
            f" but {found.bundle_digest} was registered; release it again"
        )
    vouched = bundles.Registered(model=name, version=version, bundle_digest=digest)
    registry.tag(name, version, SIGNATURE_TAG, bundles.sign(vouched, files, key))
    return keys.key_id(key.public_key())


def verify_version(configured: Settings, name: str, version: str) -> Verified:
    """What a rollout checks before it starts a replica.

    Raises:
        SpecError: there is no such version.
        BundleRefused: it is unsigned, altered, or not signed by a key that is trusted here.
    """
    _, found = _look_up(configured, name, version)
    statement, key = bundles.check_signature(found, keys.trusted(Layout(configured.home_path)))
    folder = artifacts.fetch(found.bundle.artifact, configured.cache_path) / found.bundle.path
    bundles.admit(found, folder, statement)
    return Verified(version=found, key_id=key, files=len(statement.subject))


def _look_up(configured: Settings, name: str, version: str) -> tuple[Registry, RegisteredVersion]:
    layout = Layout(configured.home_path)
    registry = Registry(configured.tracking_uri or mlflow_part.tracking_uri(layout), layout.home_path)
    return registry, registry.get(name, version)
