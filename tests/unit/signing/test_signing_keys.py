"""The key that signs, and the keys that are trusted."""

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from pipeline import settings
from pipeline.errors import SpecError
from pipeline.settings import Settings
from pipeline.signing import keys
from pipeline.stack.compose_setup import trust_signer
from pipeline.stack.layout import Layout


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "home")


def configured(layout: Layout, **environ: str) -> Settings:
    return settings.load({"SLIPWAY_HOME": str(layout.home_path), **environ})


def test_a_home_has_one_key_that_it_trusts_and_nobody_else_can_read(layout: Layout) -> None:
    """However often it is asked for."""
    first, again = keys.ensure(layout), keys.ensure(layout)
    assert keys.key_id(first.public_key()) == keys.key_id(again.public_key())
    assert list(keys.trusted(layout)) == [keys.key_id(first.public_key())]
    assert layout.signing_key_path.stat().st_mode & 0o777 == 0o600
    assert keys.key_id(keys.signing_key(configured(layout)).public_key()) == keys.key_id(first.public_key())


def test_many_who_make_the_key_at_once_get_the_same(layout: Layout) -> None:
    """Two `slipway up`, say."""
    with ThreadPoolExecutor(8) as pool:
        found = [pool.submit(keys.ensure, layout) for _ in range(8)]
    assert len({keys.key_id(one.result().public_key()) for one in found}) == 1
    assert not list(layout.signing_path.glob(".key*"))


def test_a_killed_start_leaves_nothing_that_the_next_cannot_mend(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before the key stands, it has trusted a key that nobody holds; the next makes another, and trusts it."""

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("os.link", killed)
        with pytest.raises(KeyboardInterrupt):
            keys.ensure(layout)
    assert not layout.signing_key_path.exists()
    assert keys.key_id(keys.ensure(layout).public_key()) in keys.trusted(layout)


def test_a_rotated_key_signs_and_the_old_one_stays_trusted_until_it_is_not(layout: Layout) -> None:
    """Its signatures are good as long as somebody says so; the key in force cannot be distrusted."""
    old = keys.key_id(keys.ensure(layout).public_key())
    new = keys.key_id(keys.rotate(layout).public_key())
    assert keys.key_id(keys.signing_key(configured(layout)).public_key()) == new
    assert keys.trusted(layout).keys() == {old, new}
    with pytest.raises(SpecError, match="is the key that signs now"):
        keys.distrust(configured(layout), new[:8])
    assert keys.distrust(configured(layout), old[:8]) == old
    assert keys.trusted(layout).keys() == {new}


@pytest.mark.parametrize("beginning", ["", "zz"])
def test_distrusting_needs_one_key(layout: Layout, beginning: str) -> None:
    """Neither none nor all of them."""
    keys.ensure(layout)
    with pytest.raises(SpecError, match="0 trusted keys have an id that begins"):
        keys.distrust(configured(layout), beginning)


def test_the_secret_goes_before_the_homes_key(layout: Layout) -> None:
    """In docker compose there is no key in the home."""
    keys.ensure(layout)
    text = keys.new_seed()
    found = keys.signing_key(configured(layout, SLIPWAY_SIGNING_KEY=text))
    assert keys.key_id(found.public_key()) == keys.key_id(keys.parse_private(text, "it").public_key())
    assert text not in repr(configured(layout, SLIPWAY_SIGNING_KEY=text))


def test_who_has_no_key_is_told_how_to_make_one(layout: Layout) -> None:
    """Nothing is signed by a key that comes from nowhere."""
    with pytest.raises(SpecError, match="slipway signing init"):
        keys.signing_key(configured(layout))


def test_a_key_in_pem_is_as_good(layout: Layout) -> None:
    """As other tools write it."""
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    found = keys.parse_private(pem, "it")
    assert keys.key_id(found.public_key()) == keys.key_id(key.public_key())


@pytest.mark.parametrize("text", ["", "short", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_a_damaged_key_is_named(layout: Layout, text: str) -> None:
    """And is never made anew silently."""
    keys.ensure(layout)
    layout.signing_key_path.write_text(text)
    with pytest.raises(SpecError, match=f"{layout.signing_key_path} holds no key"):
        keys.ensure(layout)


def test_only_public_keys_of_the_right_kind_are_trusted() -> None:
    """Not a private key by mistake, not RSA, not noise."""
    rsa = generate_private_key(65537, 2048)
    private = rsa.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    public = rsa.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    for text, reason in ((private, "private key"), (public, "RSAPublicKey"), ("hello", "holds no key")):
        with pytest.raises(SpecError, match=reason):
            keys.parse_public(text, "ci.pem")


def test_openssl_names_the_key_by_the_same_digest(layout: Layout, tmp_path: Path) -> None:
    """So people can check the id without Slipway."""
    public = keys.ensure(layout).public_key()
    path = tmp_path / "key.pem"
    path.write_text(keys.public_pem(public))
    der = subprocess.run(
        ["openssl", "pkey", "-pubin", "-in", str(path), "-outform", "DER"], capture_output=True, check=True
    ).stdout
    assert keys.sha256_hex(der) == keys.key_id(public)


def test_a_start_does_not_trust_again_what_a_person_distrusted(
    layout: Layout, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As where the secrets of an older backup are put back; it says so."""
    text = keys.new_seed()
    (tmp_path / "signing_key").write_text(text)
    trust_signer(layout, tmp_path)
    leaked = keys.key_id(keys.parse_private(text, "it").public_key())
    keys.ensure(layout)
    keys.distrust(configured(layout), leaked)
    trust_signer(layout, tmp_path)
    assert leaked not in keys.trusted(layout)
    assert "are refused: it was distrusted here" in capsys.readouterr().out
