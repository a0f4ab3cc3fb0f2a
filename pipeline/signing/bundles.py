"""Says which bundle is which version of which model, signs it, and checks that before anything is loaded.

The statement is in-toto's (https://in-toto.io/Statement/v1): the subjects are the bundle's files with their sha256, the
predicate names model, version and bundle digest. So the signature of one version is good for no other, nor for another
model, nor for the same number once other bytes bear it. The envelope is the version's tag `slipway.signature`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import Field, ValidationError

from pipeline.contracts.base import Contract, Digest, ModelRef, canonical_json
from pipeline.contracts.manifest import FileEntry
from pipeline.errors import BundleRefused, GateRefused
from pipeline.registry.bundles import inspect_bundle
from pipeline.registry.models import SIGNATURE_TAG, RegisteredVersion
from pipeline.signing.envelope import open_sealed, seal
from pipeline.signing.keys import TrustedKey

PAYLOAD_TYPE = "application/vnd.in-toto+json"
StatementType = Literal["https://in-toto.io/Statement/v1"]
PredicateType = Literal["urn:slipway:registered-bundle:v1"]


class Registered(Contract):
    """What the signer says."""

    model: str
    version: str
    bundle_digest: Digest


class Subject(Contract):
    """One file of the bundle."""

    name: str
    digest: dict[Literal["sha256"], Digest]


class Statement(Contract):
    """An in-toto statement."""

    type_: StatementType = Field(default="https://in-toto.io/Statement/v1", alias="_type")
    subject: tuple[Subject, ...]
    predicate_type: PredicateType = Field(default="urn:slipway:registered-bundle:v1", alias="predicateType")
    predicate: Registered


def sign(registered: Registered, files: tuple[FileEntry, ...], key: Ed25519PrivateKey) -> str:
    """The envelope that goes into the tag `slipway.signature`."""
    subjects = tuple(Subject(name=entry.path, digest={"sha256": entry.sha256}) for entry in files)
    statement = Statement(subject=subjects, predicate=registered)
    return seal(canonical_json(statement.model_dump(mode="json", by_alias=True)), PAYLOAD_TYPE, key)


def check_signature(version: RegisteredVersion, trusted: dict[str, TrustedKey]) -> tuple[Statement, str]:
    """What was signed of `version`, and the id of the key. Looks at no byte of the bundle.

    Raises:
        BundleRefused: it is not signed, a trusted key did not sign it, or it is another version's signature.
    """
    name = f"{version.name} version {version.version}"
    text = version.tags.get(SIGNATURE_TAG)
    if text is None:
        raise BundleRefused(
            f"{name} is not signed, so nobody vouches for its bundle; if you do, look at where it comes from, then"
            f" `./slipway signing sign {version.name} {version.version}` and promote it again"
        )
    try:
        payload, key = open_sealed(text, PAYLOAD_TYPE, {identity: found.public for identity, found in trusted.items()})
        statement = Statement.model_validate_json(payload)
    except BundleRefused as error:
        raise BundleRefused(f"{name}: {error}") from error
    except ValidationError as error:
        raise BundleRefused(f"{name}: what was signed is no statement of Slipway's: {error}") from error
    expected = Registered(model=version.name, version=version.version, bundle_digest=version.bundle_digest)
    if statement.predicate != expected:
        raise BundleRefused(
            f"{name}: the signature is good, but of something else: {_described(statement.predicate)}, expected"
            f" {_described(expected)}; register the bundle again by a release"
        )
    return statement, key


def admit(version: RegisteredVersion, folder: Path, statement: Statement) -> None:
    """Compares the bytes in `folder` with what was signed, and looks for what could run code.

    Raises:
        BundleRefused: a file was altered, added or taken away, or is of a kind that no bundle may hold.
    """
    name = f"{version.name} version {version.version}"
    try:
        files, digest = inspect_bundle(folder)
    except GateRefused as error:
        raise BundleRefused(f"{name}: {error}") from error
    signed = {subject.name: subject.digest["sha256"] for subject in statement.subject}
    found = {entry.path: entry.sha256 for entry in files}
    if found != signed or digest != statement.predicate.bundle_digest:
        differing = sorted(path for path in {*found, *signed} if found.get(path) != signed.get(path))
        raise BundleRefused(
            f"{name}: the bundle at {version.bundle.artifact.uri} is not the one that was signed: digest {digest},"
            f" signed was {statement.predicate.bundle_digest}; other bytes in {', '.join(differing) or 'its sizes'};"
            " release it again"
        )


def verified_folder(
    version: RegisteredVersion, trusted: dict[str, TrustedKey], fetch: Callable[[ModelRef], Path]
) -> Path:
    """The folder of a bundle that may be loaded: signed first, then fetched, then every byte compared.

    Args:
        fetch: gives a local folder.

    Raises:
        BundleRefused: see `check_signature` and `admit`.
        IntegrityError: the artifact is gone or damaged.
    """
    statement, _ = check_signature(version, trusted)
    folder = fetch(version.bundle)
    admit(version, folder, statement)
    return folder


def _described(registered: Registered) -> str:
    return f"{registered.model} version {registered.version} with bundle {registered.bundle_digest[:16]}"
