"""TLS at the public port, with certificates made here."""

from __future__ import annotations

import asyncio
import datetime
import os
import socket
import ssl
import warnings
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pydantic import ValidationError

from services.gateway.config import Settings
from tests.gateway.conftest import eventually, running
from tests.gateway.deployer import Deployer, route
from tests.gateway.upstream import serve


def make_pair(directory: Path, name: str = "mayfly.example") -> tuple[Path, Path]:
    """Write a self-signed certificate and its key, as a mounted Secret names them."""
    directory.mkdir(parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    paths = directory / "tls.crt", directory / "tls.key"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return paths


def handshake(
    port: int, newest: ssl.TLSVersion | None = None
) -> tuple[str, str | None, str | None]:
    """Return the certificate's name, the protocol chosen by ALPN, and the TLS version."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2", "http/1.1"])
    if newest is not None:
        context.set_ciphers("DEFAULT@SECLEVEL=0")  # else this side refuses what is old
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
            context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, newest
    with (
        socket.create_connection(("127.0.0.1", port), timeout=5) as plain,
        context.wrap_socket(plain, server_hostname="mayfly.example") as wrapped,
    ):
        der = wrapped.getpeercert(binary_form=True)
        assert der is not None
        (name,) = x509.load_der_x509_certificate(der).subject.get_attributes_for_oid(
            NameOID.COMMON_NAME
        )
        return str(name.value), wrapped.selected_alpn_protocol(), wrapped.version()


def swap(mount: Path, pair: tuple[Path, Path]) -> None:
    """Replace a mounted Secret's files as the kubelet does: one link is moved over another."""
    mount.mkdir(exist_ok=True)
    (mount / "..new").symlink_to(pair[0].parent)
    os.replace(mount / "..new", mount / "..data")
    for path in pair:
        if not (mount / path.name).is_symlink():
            (mount / path.name).symlink_to(Path("..data") / path.name)


async def test_the_public_port_speaks_tls(directory: Path, deployer: Deployer) -> None:
    certificate, key = make_pair(directory / "pair")
    async with (
        serve(directory / "f.sock") as upstream,
        running(directory, deployer, tls_certificate=str(certificate), tls_key=str(key)) as made,
    ):
        assert made.url.startswith("https://")
        await deployer.connected()
        await deployer.put(route("f", upstream.endpoint))
        assert await asyncio.to_thread(handshake, made.port) == ("mayfly.example", "h2", "TLSv1.3")
        older = await asyncio.to_thread(handshake, made.port, ssl.TLSVersion.TLSv1_2)
        assert older[2] == "TLSv1.2"
        with pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"):
            await asyncio.to_thread(handshake, made.port, ssl.TLSVersion.TLSv1_1)
        trust = ssl.create_default_context(cafile=str(certificate))
        trust.check_hostname = False
        async with httpx.AsyncClient(base_url=made.url, verify=trust, trust_env=False) as http:
            for _ in range(3):
                seen = await http.get("/f/f/", headers={"x-forwarded-proto": "http"})
                assert seen.json()["headers"]["x-forwarded-proto"] == "https"
                await deployer.put(*deployer.routes.values())
            assert (await http.get("/v1/functions/hello")).status_code == 200
            assert (await http.get("/")).json()["api"].startswith("https://localhost:")
        async with httpx.AsyncClient(trust_env=False) as http:
            with pytest.raises(httpx.HTTPError):
                await http.get(made.url.replace("https", "http"))


async def test_a_replaced_certificate_is_taken_and_a_broken_one_is_not(
    directory: Path, deployer: Deployer
) -> None:
    swap(directory / "mount", make_pair(directory / "one", "one.example"))
    settings = {
        "tls_certificate": str(directory / "mount" / "tls.crt"),
        "tls_key": str(directory / "mount" / "tls.key"),
    }
    async with running(directory, deployer, **settings) as made:
        port = made.port

        async def serves(name: str) -> bool:
            return (await asyncio.to_thread(handshake, port))[0] == name

        assert await serves("one.example")
        swap(directory / "mount", make_pair(directory / "two", "two.example"))
        await eventually(lambda: serves("two.example"))
        broken = make_pair(directory / "three", "three.example")
        make_pair(directory / "other")[1].replace(broken[1])
        swap(directory / "mount", broken)
        swap(directory / "mount", make_pair(directory / "four", "four.example"))
        seen = {"two.example"}

        async def settled() -> bool:
            seen.add((await asyncio.to_thread(handshake, port))[0])
            return "four.example" in seen

        await eventually(settled)
        assert seen == {"two.example", "four.example"}


def test_wrong_pairs_are_refused_by_name(tmp_path: Path) -> None:
    certificate, key = make_pair(tmp_path / "one")
    other = make_pair(tmp_path / "two")[1]
    junk = tmp_path / "junk"
    junk.write_text("junk")
    torn = tmp_path / "torn"
    torn.write_text(certificate.read_text()[:100])

    def wrong(certificate: Path | str, key: Path | str) -> list[tuple[str, str]]:
        with pytest.raises(ValidationError) as caught:
            Settings(tls_certificate=str(certificate), tls_key=str(key))
        return [(str(e["loc"][0]), e["msg"]) for e in caught.value.errors()]

    assert Settings(tls_certificate=str(certificate), tls_key=str(key)).tls_key
    for one, two, setting, message in (
        (certificate, "", "tls_key", "is needed with MAYFLY_TLS_CERTIFICATE"),
        ("", key, "tls_key", "is needed with MAYFLY_TLS_CERTIFICATE, and only with it"),
        (tmp_path / "none", key, "tls_certificate", "cannot be read: No such file"),
        (certificate, tmp_path / "none", "tls_key", "cannot be read: No such file"),
        (junk, key, "tls_certificate", "holds no certificate in PEM"),
        (certificate, junk, "tls_key", "holds no private key in PEM"),
        (certificate, other, "tls_key", "is not the key of MAYFLY_TLS_CERTIFICATE"),
        (torn, key, "tls_key", "OpenSSL takes neither"),
    ):
        ((name, said),) = wrong(one, two)
        assert name == setting
        assert message in said
