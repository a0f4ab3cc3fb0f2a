"""The key that signs bundles, and the public keys whose signatures this home accepts.

Reads and writes `home/signing/key` (mode 0600: the private key) and `home/signing/trusted/<key id>.pem` (public ones).
`<key id>.distrusted` beside them says that a key counts no more, though a backup that is put back bring it along.
In docker compose the private key is the secret `signing_key` instead, and is in no folder that a replica, the gateway
or a step can read. Keys are Ed25519 (RFC 8032).
"""

import base64
import binascii
import re
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from pipeline.contracts.base import sha256_hex
from pipeline.errors import SpecError
from pipeline.settings import Settings
from pipeline.stack.layout import Layout
from pipeline.whole_files import made_once, write_atomically

SEED_BYTES = 32
SHORT_CHARS = 16
"""Of a key's id, in names of files and for people."""


@dataclass(frozen=True)
class TrustedKey:
    """A public key whose signatures count."""

    public: Ed25519PublicKey
    since: str
    """UTC, ISO 8601"""

    @property
    def key_id(self) -> str:
        return key_id(self.public)


def key_id(key: Ed25519PublicKey) -> str:
    """The sha256 of the key's SubjectPublicKeyInfo, as Sigstore and in-toto name keys."""
    return sha256_hex(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def short(identity: str) -> str:
    return identity[:SHORT_CHARS]


def public_pem(key: Ed25519PublicKey) -> str:
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


# --- the private key ---------------------------------------------------------------------------------------------


def ensure(layout: Layout) -> Ed25519PrivateKey:
    """The key of this home, made and trusted if it has none. Several may call at once: one key stays.

    Killed in between, it leaves a trusted key that nobody holds, which does no harm.
    """
    path = layout.signing_key_path
    if not path.exists():
        text = new_seed()
        trust(layout, parse_private(text, path).public_key())
        made_once(path, lambda: text)
    return parse_private(path.read_text(), path)


def signing_key(configured: Settings) -> Ed25519PrivateKey:
    """The key that signs: the secret where there is one, else the home's.

    Raises:
        SpecError: there is none here, or it is damaged.
    """
    if configured.signing_key:
        return parse_private(configured.signing_key, "the secret signing_key")
    path = Layout(configured.home_path).signing_key_path
    try:
        text = path.read_text()
    except OSError as error:
        raise SpecError(
            f"there is no key to sign bundles with ({path}: {error.strerror}); `./slipway signing init` makes one, in"
            " docker compose `./slipway init` does"
        ) from error
    return parse_private(text, path)


def rotate(layout: Layout) -> Ed25519PrivateKey:
    """Makes a new key, trusts it and signs with it from now on; signatures of the old one stay good.

    Killed in between, it leaves the old key in force.
    """
    text = new_seed()
    key = parse_private(text, layout.signing_key_path)
    trust(layout, key.public_key())
    write_atomically(layout.signing_key_path, text)
    return key


def new_seed() -> str:
    """A private key as one line: its 32 random bytes in URL-safe base64."""
    return base64.urlsafe_b64encode(secrets.token_bytes(SEED_BYTES)).decode()


def parse_private(text: str, source: object) -> Ed25519PrivateKey:
    """From one line of base64, or from PEM (PKCS #8) without a password, as `openssl genpkey` writes it."""
    expected = f"expected {SEED_BYTES} bytes in base64, or an Ed25519 key in PEM without a password"
    try:
        if text.lstrip().startswith("-----BEGIN"):
            found = load_pem_private_key(text.encode(), password=None)
            if not isinstance(found, Ed25519PrivateKey):
                raise SpecError(f"{source} is a {type(found).__name__}; {expected}")
            return found
        return Ed25519PrivateKey.from_private_bytes(base64.urlsafe_b64decode(text.strip()))
    except (ValueError, TypeError, binascii.Error, UnsupportedAlgorithm) as error:
        raise SpecError(f"{source} holds no key; {expected}") from error


# --- trusted keys ------------------------------------------------------------------------------------------------


def trusted(layout: Layout) -> dict[str, TrustedKey]:
    """Every key that is trusted here, by its id.

    Raises:
        SpecError: one of the files holds no Ed25519 public key.
    """
    found = {}
    for path in sorted(layout.trusted_keys_path.glob("[!.]*.pem")):
        since = datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat(timespec="seconds")
        key = TrustedKey(parse_public(path.read_text(), path), since)
        if not _distrusted_path(layout, key.key_id).exists():
            found[key.key_id] = key
    return found


def trust(layout: Layout, key: Ed25519PublicKey, *, again: bool = False) -> str:
    """Accepts what `key` signs from now on. Harmless to repeat.

    Args:
        again: also if it was distrusted, as only a person may decide.

    Returns:
        The key's id.
    """
    identity = key_id(key)
    path = layout.trusted_keys_path / f"{short(identity)}.pem"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomically(path, public_pem(key))
    if again:
        _distrusted_path(layout, identity).unlink(missing_ok=True)
    return identity


def distrust(configured: Settings, beginning: str) -> str:
    """Accepts no more what the key with the id `beginning…` signed.

    Returns:
        The key's id.

    Raises:
        SpecError: no key or several begin so, or it is the one that signs now.
    """
    layout = Layout(configured.home_path)
    known = trusted(layout)
    found = [identity for identity in known if beginning and identity.startswith(beginning)]
    if len(found) != 1:
        names = ", ".join(map(short, known)) or "none"
        raise SpecError(f"{len(found)} trusted keys have an id that begins with {beginning!r}; trusted are: {names}")
    if found[0] == _own_id(configured):
        raise SpecError(
            f"{short(found[0])} is the key that signs now; make another first: `./slipway signing rotate`, in docker"
            " compose `./slipway init --rotate signing_key`"
        )
    marker = _distrusted_path(layout, found[0])
    write_atomically(marker, "")
    for path in layout.trusted_keys_path.glob("[!.]*.pem"):
        if key_id(parse_public(path.read_text(), path)) == found[0]:
            path.unlink(missing_ok=True)
    return found[0]


def _distrusted_path(layout: Layout, identity: str) -> Path:
    return layout.trusted_keys_path / f"{short(identity)}.distrusted"


def parse_public(text: str, source: object) -> Ed25519PublicKey:
    """A public key from PEM.

    Raises:
        SpecError: it is none, or of another kind.
    """
    expected = "expected an Ed25519 public key in PEM, as `./slipway signing show` prints it"
    if re.search("PRIVATE KEY", text):
        raise SpecError(f"{source} holds a private key, which belongs nowhere but where it signs; {expected}")
    try:
        found = load_pem_public_key(text.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SpecError(f"{source} holds no key; {expected}") from error
    if not isinstance(found, Ed25519PublicKey):
        raise SpecError(f"{source} is a {type(found).__name__}; {expected}")
    return found


def _own_id(configured: Settings) -> str | None:
    there_is_one = configured.signing_key or Layout(configured.home_path).signing_key_path.exists()
    return key_id(signing_key(configured).public_key()) if there_is_one else None
