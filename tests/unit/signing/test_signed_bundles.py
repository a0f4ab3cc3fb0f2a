"""Which bundles may be loaded."""

import json
import pickle
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pipeline.artifacts.digests import file_entries, folder_digest
from pipeline.contracts.base import ArtifactRef, ModelRef
from pipeline.contracts.recipe import Recipe
from pipeline.errors import BundleRefused
from pipeline.registry.models import SIGNATURE_TAG, RegisteredVersion
from pipeline.signing.bundles import Registered, check_signature, sign, verified_folder
from pipeline.signing.keys import TrustedKey, key_id
from tests.integration.finished_release import weights

KEY, STRANGER = (Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in (1, 2))
TRUSTED = {key_id(KEY.public_key()): TrustedKey(KEY.public_key(), since="2026-01-01T00:00:00+00:00")}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A sound one."""
    files = {"config.json": b"{}", "model.safetensors": weights(1), "tokenizer.json": b"{}", "README.md": b"# Hello"}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


def registered(bundle: Path, *, name: str = "demo", version: str = "3", signature: str | None) -> RegisteredVersion:
    artifact = ArtifactRef(uri="file:///store/compress/key", digest="0" * 64)
    recipe = {"name": "demo", "dataset": {"generate": {"kind": "support-intents"}}, "base_model": {"init": {}}}
    return RegisteredVersion(
        name=name,
        version=version,
        created_at="2026-01-01T00:00:00+00:00",
        run_id=None,
        tags={SIGNATURE_TAG: signature} if signature else {},
        bundle=ModelRef(artifact=artifact),
        bundle_digest=folder_digest(bundle),
        registration=artifact,
        recipe=Recipe.model_validate(recipe),
    )


def signature_of(bundle: Path, key: Ed25519PrivateKey = KEY, **changes: str) -> str:
    what = {"model": "demo", "version": "3", "bundle_digest": folder_digest(bundle), **changes}
    return sign(Registered.model_validate(what), file_entries(bundle), key)


def load(version: RegisteredVersion, bundle: Path) -> Path:
    return verified_folder(version, TRUSTED, lambda _: bundle)


def test_a_signed_bundle_is_given(bundle: Path) -> None:
    """The folder whose every byte was compared."""
    assert load(registered(bundle, signature=signature_of(bundle)), bundle) == bundle


def test_the_statement_is_in_totos_with_a_subject_for_each_file(bundle: Path) -> None:
    """So other tools can read it."""
    statement, key = check_signature(registered(bundle, signature=signature_of(bundle)), TRUSTED)
    assert key in TRUSTED
    said = statement.model_dump(mode="json", by_alias=True)
    assert said["_type"] == "https://in-toto.io/Statement/v1"
    assert said["subject"] == [
        {"name": entry.path, "digest": {"sha256": entry.sha256}} for entry in file_entries(bundle)
    ]
    assert said["predicate"] == {"model": "demo", "version": "3", "bundle_digest": folder_digest(bundle)}


def test_an_unsigned_bundle_is_refused_before_it_is_fetched(bundle: Path) -> None:
    """And the message says how to vouch for it."""

    def fetch(_: ModelRef) -> Path:
        raise AssertionError("fetched")

    with pytest.raises(BundleRefused, match=r"is not signed.*slipway signing sign demo 3"):
        verified_folder(registered(bundle, signature=None), TRUSTED, fetch)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model": "other"}, "of something else: other version 3"),
        ({"version": "2"}, "of something else: demo version 2"),
        ({"bundle_digest": "1" * 64}, "of something else: demo version 3 with bundle 1111"),
    ],
)
def test_another_ones_signature_is_refused(bundle: Path, changes: dict[str, str], reason: str) -> None:
    """Moving a good signature to another model, version or bundle helps nobody."""
    with pytest.raises(BundleRefused, match=reason):
        load(registered(bundle, signature=signature_of(bundle, **changes)), bundle)


def test_a_strangers_signature_is_refused(bundle: Path) -> None:
    """It names the key, and how another place's key comes to be trusted."""
    with pytest.raises(BundleRefused, match=key_id(STRANGER.public_key())[:16]):
        load(registered(bundle, signature=signature_of(bundle, STRANGER)), bundle)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "new.json"])
def test_a_bundle_that_is_not_the_signed_one_is_refused(bundle: Path, name: str) -> None:
    """Altered or added, though the registry's own digest were altered to match."""
    signature = signature_of(bundle)
    (bundle / name).write_bytes(weights(22) if name.endswith(".safetensors") else b'{"more": 1}')
    with pytest.raises(BundleRefused, match="of something else"):
        load(registered(bundle, signature=signature), bundle)
    version = registered(bundle, signature=signature)
    (bundle / name).unlink()
    with pytest.raises(BundleRefused):
        load(version, bundle)


def test_bytes_that_changed_after_registration_are_named(bundle: Path) -> None:
    """The tags still say what was signed; the folder does not."""
    version = registered(bundle, signature=signature_of(bundle))
    (bundle / "config.json").write_text('{"a": 1}')
    (bundle / "tokenizer.json").unlink()
    with pytest.raises(BundleRefused, match=r"other bytes in config\.json, tokenizer\.json"):
        load(version, bundle)


def test_a_signed_pickle_is_refused_all_the_same(bundle: Path) -> None:
    """Whoever signs makes mistakes, and keys are stolen."""
    for name, data in (("optimizer.pt", b"\x80\x04."), ("vocab.json", pickle.dumps(json.dumps))):
        path = bundle / name
        path.write_bytes(data)
        with pytest.raises(BundleRefused, match=name):
            load(registered(bundle, signature=signature_of(bundle)), bundle)
        path.unlink()


def test_a_statement_of_another_kind_is_refused(bundle: Path) -> None:
    """The key may sign other things some day."""
    from pipeline.signing.envelope import seal

    text = seal(b'{"_type": "https://in-toto.io/Statement/v1"}', "application/vnd.in-toto+json", KEY)
    with pytest.raises(BundleRefused, match="is no statement of Slipway's"):
        load(registered(bundle, signature=text), bundle)
