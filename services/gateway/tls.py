"""TLS at the public port: the certificate's check at start, and its form for Envoy."""

from __future__ import annotations

import ssl
from pathlib import Path

from services.gateway.envoy_config import Config

SECRET = "public"
_API = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3"


def check_certificate(path: Path) -> None:
    """Raise `ValueError` with what is wrong with a file of certificates."""
    _check_pem(path, "-----BEGIN CERTIFICATE-----", "certificate")


def check_key(path: Path, certificate: Path) -> None:
    """Raise `ValueError` where a file is no private key, or not that of the certificate."""
    _check_pem(path, "PRIVATE KEY-----", "private key")
    try:
        # Without a password's function OpenSSL would ask at the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, path, lambda: b"")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ValueError("is not the key of MAYFLY_TLS_CERTIFICATE") from error
        raise ValueError(
            f"OpenSSL takes neither it nor the certificate ({error.reason or error}); "
            "both have to be PEM, the key without a password"
        ) from error


def _check_pem(path: Path, mark: str, what: str) -> None:
    try:
        text = path.read_text("latin-1")
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from error
    if mark not in text:
        raise ValueError(f"holds no {what} in PEM")


def secret(certificate: Path, key: Path) -> Config:
    """Return the discovery response that Envoy reads the certificate from.

    It looks anew when something is moved into the certificate's directory, which is how Kubernetes
    replaces the files of a mounted Secret, and how one replaces files without a moment in between.
    https://www.envoyproxy.io/docs/envoy/latest/configuration/security/secret#key-rotation
    """
    files: Config = {
        "certificate_chain": {"filename": str(certificate)},
        "private_key": {"filename": str(key)},
    }
    if certificate.parent == key.parent:
        files["watched_directory"] = {"path": str(certificate.parent)}
    resource = {"@type": f"{_API}.Secret", "name": SECRET, "tls_certificate": files}
    return {"resources": [resource]}


def transport_socket(secret_file: str) -> Config:
    """Return the listener's side: TLS 1.2 or newer (RFC 8996), HTTP/2 where the client has it."""
    source = {"path_config_source": {"path": secret_file}, "resource_api_version": "V3"}
    context: Config = {
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"},
        "alpn_protocols": ["h2", "http/1.1"],
        "tls_certificate_sds_secret_configs": [{"name": SECRET, "sds_config": source}],
    }
    return {
        "name": "envoy.transport_sockets.tls",
        "typed_config": {"@type": f"{_API}.DownstreamTlsContext", "common_tls_context": context},
    }
