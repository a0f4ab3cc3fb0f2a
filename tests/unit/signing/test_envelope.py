"""DSSE: what is signed, and what is refused."""

import base64
import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pipeline.errors import BundleRefused
from pipeline.signing.envelope import open_sealed, pre_authentication_encoding, seal
from pipeline.signing.keys import key_id

KIND = "application/vnd.in-toto+json"
KEY, STRANGER = (Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in (1, 2))
TRUSTED = {key_id(KEY.public_key()): KEY.public_key()}


def test_the_signed_bytes_are_those_of_the_specification() -> None:
    """The test vector of DSSE's protocol.md, and lengths in bytes, not in letters."""
    expected = b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    assert pre_authentication_encoding("http://example.com/HelloWorld", b"hello world") == expected
    assert pre_authentication_encoding("ä", b"") == b"DSSEv1 2 \xc3\xa4 0 "


def test_a_trusted_keys_envelope_gives_back_the_signed_bytes() -> None:
    """And says whose it is; the same payload always has the same envelope."""
    text = seal(b'{"a": 1}', KIND, KEY)
    assert open_sealed(text, KIND, TRUSTED) == (b'{"a": 1}', key_id(KEY.public_key()))
    assert text == seal(b'{"a": 1}', KIND, KEY)


def test_the_key_is_found_whatever_the_hint_says() -> None:
    """`keyid` is not signed, so it decides nothing."""
    envelope = json.loads(seal(b"{}", KIND, KEY))
    envelope["signatures"][0]["keyid"] = "another"
    assert open_sealed(json.dumps(envelope), KIND, TRUSTED)[0] == b"{}"
    forged = json.loads(seal(b"{}", KIND, STRANGER))
    forged["signatures"][0]["keyid"] = key_id(KEY.public_key())
    with pytest.raises(BundleRefused, match="no trusted key made the signature"):
        open_sealed(json.dumps(forged), KIND, TRUSTED)


def test_one_good_signature_among_others_is_enough() -> None:
    """During a rotation two keys may sign."""
    envelope = json.loads(seal(b"{}", KIND, STRANGER))
    envelope["signatures"] += json.loads(seal(b"{}", KIND, KEY))["signatures"]
    assert open_sealed(json.dumps(envelope), KIND, TRUSTED)[1] in TRUSTED


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"payload": base64.b64encode(b"[]").decode()}, "no trusted key"),
        ({"payloadType": "text/plain"}, "is over 'text/plain'"),
        ({"signatures": []}, "is no DSSE envelope"),
        ({"signatures": [{"sig": "AAAA"}]}, "no trusted key"),
        ({"signatures": [{"sig": "not base64!"}]}, "is no DSSE envelope"),
        ({"payload": None}, "is no DSSE envelope"),
    ],
)
def test_what_was_changed_is_refused(change: dict[str, object], reason: str) -> None:
    """The payload, its type, or the signatures."""
    envelope = {**json.loads(seal(b"{}", KIND, KEY)), **change}
    with pytest.raises(BundleRefused, match=reason):
        open_sealed(json.dumps(envelope), KIND, TRUSTED)


def test_nobody_trusted_means_nothing_is_good() -> None:
    """An empty folder of keys opens no door."""
    with pytest.raises(BundleRefused, match="trusted are none"):
        open_sealed(seal(b"{}", KIND, KEY), KIND, {})
