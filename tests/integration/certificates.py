"""Certificates for the gateway, made on the spot."""

import datetime
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from pipeline.fleet.doors import tls

NAME = "gateway.example"


@dataclass
class Pair:
    """A self-signed certificate."""

    cert: bytes
    key: bytes

    @classmethod
    def make(cls, days: int = 1) -> "Pair":
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)])
        end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
        cert = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(end - datetime.timedelta(days=30))
            .not_valid_after(end)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME)]), critical=False)
            .sign(key, hashes.SHA256())
        )
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return cls(cert.public_bytes(serialization.Encoding.PEM), private)

    def put(self, folder: Path) -> tls.Certificate:
        """Written over what is there, one file after the other."""
        folder.mkdir(exist_ok=True)
        (folder / tls.CERT_FILE).write_bytes(self.cert)
        (folder / tls.KEY_FILE).write_bytes(self.key)
        found = tls.certificate_in(folder)
        assert found is not None
        return found
