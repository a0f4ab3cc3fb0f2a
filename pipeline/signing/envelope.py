"""DSSE envelopes: a payload, its type, and signatures over both.

The form is that of https://github.com/secure-systems-lab/dsse (v1.0.2): in-toto, cosign and SLSA use the same.
"""

import base64
import binascii
from collections.abc import Mapping

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import BundleRefused
from pipeline.signing.keys import key_id


class Signature(BaseModel):
    """One signature; `keyid` is a hint that nobody relies on."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    keyid: str = ""
    sig: str
    """Base64"""


class Envelope(BaseModel):
    """What is stored. Unknown fields are ignored, as the specification wants."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)

    payload: str
    """Base64"""
    payload_type: str = Field(alias="payloadType")
    signatures: tuple[Signature, ...] = Field(min_length=1)


def pre_authentication_encoding(payload_type: str, payload: bytes) -> bytes:
    """The bytes that are signed: the type is among them, so that no statement passes for another kind."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def seal(payload: bytes, payload_type: str, key: Ed25519PrivateKey) -> str:
    """The envelope as JSON. The same payload and key always give the same one."""
    signature = key.sign(pre_authentication_encoding(payload_type, payload))
    signed = Signature(keyid=key_id(key.public_key()), sig=base64.b64encode(signature).decode())
    encoded = base64.b64encode(payload).decode()
    envelope = Envelope(payload=encoded, payload_type=payload_type, signatures=(signed,))
    return envelope.model_dump_json(by_alias=True)


def open_sealed(text: str, payload_type: str, trusted: Mapping[str, Ed25519PublicKey]) -> tuple[bytes, str]:
    """The payload of an envelope that a trusted key signed.

    Args:
        trusted: key id to key. Every one is tried, whatever `keyid` says.

    Returns:
        The very bytes that were signed, and the id of the key.

    Raises:
        BundleRefused: it is no envelope, of another type, or no trusted key signed these bytes.
    """
    try:
        envelope = Envelope.model_validate_json(text)
        payload = base64.b64decode(envelope.payload, validate=True)
        signatures = [base64.b64decode(found.sig, validate=True) for found in envelope.signatures]
    except (ValidationError, binascii.Error) as error:
        raise BundleRefused(f"the signature is no DSSE envelope ({str(error).splitlines()[0]})") from error
    if envelope.payload_type != payload_type:
        raise BundleRefused(f"the signature is over {envelope.payload_type!r}, expected {payload_type!r}")
    signed = pre_authentication_encoding(payload_type, payload)
    for identity, key in trusted.items():
        if any(_is_by(key, signature, signed) for signature in signatures):
            return payload, identity
    claimed = ", ".join(found.keyid[:16] or "unnamed" for found in envelope.signatures)
    raise BundleRefused(
        f"no trusted key made the signature: it names the key {claimed}, trusted are"
        f" {', '.join(identity[:16] for identity in trusted) or 'none'}; either its text was altered, or it was made"
        " elsewhere: `./slipway signing trust FILE` accepts another place's public key"
    )


def _is_by(key: Ed25519PublicKey, signature: bytes, signed: bytes) -> bool:
    try:
        key.verify(signature, signed)
    except InvalidSignature:
        return False
    return True
