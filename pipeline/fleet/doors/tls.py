"""TLS for the gateway's clients: which certificate, and how a new one takes the place of the one before.

Reads the certificate and key that somebody named (`slipway up --tls-cert … --tls-key …`); writes
`home/gateway/tls.json`, which names them, and `home/gateway/xds/tls/gateway.json`, which Envoy watches and which holds
them, readable by the owner alone. The program `doors` looks twice a second whether the files say something new.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.contracts.base import Contract
from pipeline.errors import SpecError
from pipeline.fleet.doors.keys import clock
from pipeline.stack.layout import Layout, read_json, write_json

if TYPE_CHECKING:
    from cryptography import x509

Json = dict[str, Any]
SOCKETS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3"
INSPECTOR = "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector"
SECRET = "gateway"
CERT_FILE, KEY_FILE = "tls.crt", "tls.key"
"""What they are called in a folder that holds both, as in Kubernetes."""


class Certificate(Contract):
    """Where the certificate and its key are: absolute paths."""

    cert_path: str
    """PEM: the server's certificate, then those of its issuers."""
    key_path: str
    """PEM, without a password."""


def certificate_of(layout: Layout) -> Certificate | None:
    """The one that was chosen; None while the gateway speaks plain HTTP alone."""
    path = _choice_path(layout)
    return read_json(path, Certificate) if path.exists() else None


def certificate_in(folder: Path) -> Certificate | None:
    """`tls.crt` and `tls.key`, if the former is there."""
    cert_path = folder / CERT_FILE
    return Certificate(cert_path=str(cert_path), key_path=str(folder / KEY_FILE)) if cert_path.exists() else None


def choose(layout: Layout, certificate: Certificate | None) -> None:
    """Keeps which certificate the gateway shows, from its next start on; None: plain HTTP alone.

    Raises:
        SpecError: it cannot be used; nothing was changed.
    """
    if certificate is not None:
        read_pair(certificate)
        write_json(_choice_path(layout), certificate)
    else:
        _choice_path(layout).unlink(missing_ok=True)
        secret_path(layout).unlink(missing_ok=True)
    ports = layout.ports()
    plain = ports.public_url("gateway").replace("https://", "http://", 1)
    wanted = plain.replace("http://", "https://", 1) if certificate else plain
    write_json(layout.stack_path, ports.model_copy(update={"public": {**ports.public, "gateway": wanted}}))


def read_pair(certificate: Certificate) -> tuple[str, str]:
    """The certificate chain and the key, which fit each other, as PEM.

    Raises:
        SpecError: a file is missing or no PEM, they do not fit, or the certificate counts no longer, or not yet.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        chain_text, key_text = Path(certificate.cert_path).read_text(), Path(certificate.key_path).read_text()
        leaf = x509.load_pem_x509_certificates(chain_text.encode())[0]
        key = load_pem_private_key(key_text.encode(), None)
    except (OSError, ValueError, TypeError) as error:
        raise SpecError(
            f"no certificate and key can be read from {certificate.cert_path} and {certificate.key_path}: {error};"
            " expected two PEM files, the key without a password"
        ) from error
    if leaf.public_key() != key.public_key():
        raise SpecError(f"the key {certificate.key_path} is not that of the certificate {certificate.cert_path}")
    _check_time(certificate, leaf)
    return chain_text, key_text


def _check_time(certificate: Certificate, leaf: "x509.Certificate") -> None:
    begins, ends = leaf.not_valid_before_utc, leaf.not_valid_after_utc
    if not begins.timestamp() <= clock() < ends.timestamp():
        raise SpecError(
            f"the certificate {certificate.cert_path} counts from {begins:%Y-%m-%d %H:%M} to {ends:%Y-%m-%d %H:%M} UTC,"
            " not now: put one there that does"
        )


def stamp(certificate: Certificate) -> tuple[tuple[int, int, int], ...]:
    """Changes when either file is written or replaced, whichever way.

    Raises:
        SpecError: one is gone.
    """
    try:
        found = [Path(path).stat() for path in (certificate.cert_path, certificate.key_path)]
    except OSError as error:
        raise SpecError(f"the certificate or its key is gone: {error}; put it back") from error
    return tuple((one.st_mtime_ns, one.st_size, one.st_ino) for one in found)


# --- Envoy -------------------------------------------------------------------------------------------------------


def secret(pair: tuple[str, str]) -> Json:
    """The certificate and key as Envoy reads them."""
    chain, key = pair
    return {
        "@type": f"{SOCKETS}.Secret",
        "name": SECRET,
        "tls_certificate": {
            "certificate_chain": {"inline_string": chain},
            "private_key": {"inline_string": key},
        },
    }


def filter_chains(http: Json, own: Json, source: Json) -> Json:
    """A listener that speaks TLS with clients, and plain HTTP with the stack's own programs alone.

    Args:
        http: the filter that both lead to.
        own: how connections of the stack's own are told (`own_connections`).
        source: where Envoy watches the certificate.
    """
    context = {
        "@type": f"{SOCKETS}.DownstreamTlsContext",
        "common_tls_context": {
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"},
            "alpn_protocols": ["h2", "http/1.1"],
            "tls_certificate_sds_secret_configs": [{"name": SECRET, "sds_config": source}],
        },
    }
    return {
        "listener_filters": [{"name": "envoy.filters.listener.tls_inspector", "typed_config": {"@type": INSPECTOR}}],
        "listener_filters_timeout": "10s",
        "filter_chains": [
            {
                "name": "tls",
                "filter_chain_match": {"transport_protocol": "tls"},
                "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": context},
                "filters": [http],
            },
            {"name": "own", "filter_chain_match": {"transport_protocol": "raw_buffer", **own}, "filters": [http]},
        ],
    }


def own_connections(listen: str, fleet_address: str, loopback: str) -> Json:
    """How Envoy tells connections of the stack's own programs: from this machine itself; in a container, those that
    come in by the address that it has in the fleet's network."""
    if listen == loopback:
        return {"source_type": "SAME_IP_OR_LOOPBACK"}
    return {"prefix_ranges": [{"address_prefix": fleet_address, "prefix_len": 32}]}


def secret_path(layout: Layout) -> Path:
    """What Envoy reads."""
    return layout.gateway_path / "xds" / "tls" / f"{SECRET}.json"


def _choice_path(layout: Layout) -> Path:
    return layout.gateway_path / "tls.json"
