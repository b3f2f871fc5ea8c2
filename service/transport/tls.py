"""TLS for both transports, from the same three settings: certificate, key, and the CAs of clients.

The files are watched: new connections use the renewed files, open ones stay as they are.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import grpc

from feature_store.errors import InputError
from service.file_watch import Contents, WatchedFiles
from service.settings import Settings


@dataclass(frozen=True, eq=False)
class Tls:
    """What new connections use: a context for the lean transport, and the same as PEM for grpcio."""

    context: ssl.SSLContext
    certificate: bytes
    key: bytes
    authority: bytes | None

    def configuration(self) -> grpc.ServerCertificateConfiguration:
        """A new object on each call, because grpcio takes ownership of it."""
        return grpc.ssl_server_certificate_configuration([(self.key, self.certificate)], self.authority)


def watched(settings: Settings) -> WatchedFiles[Tls] | None:
    """The TLS files of the settings; None without TLS. InputError if they cannot be used."""
    paths = [path for path in (settings.tls_certificate, settings.tls_key, settings.tls_client_ca) if path is not None]
    for path in paths:
        if not path.is_file():
            raise InputError(f"TLS: there is no file {path}")

    def load(contents: Contents) -> Tls:
        authority = contents[2] if len(contents) > 2 else None  # noqa: PLR2004  # certificate and key come first
        return Tls(_context(*paths), contents[0], contents[1], authority)

    return WatchedFiles("TLS", paths, load) if paths else None


def _context(certificate: Path, key: Path, authority: Path | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
        if authority is not None:
            context.load_verify_locations(authority)
            context.verify_mode = ssl.CERT_REQUIRED
    except (ssl.SSLError, OSError, ValueError) as error:
        raise InputError(f"TLS: certificate, key and CAs cannot be read or do not match ({error})") from error
    return context


def _no_password() -> str:
    raise ValueError("the key has a password: use a key without one")


class NewestContext(ssl.SSLContext):
    """A context that does each handshake with the newest files, for a server that keeps one context for good.

    Each renewal makes a new context rather than loading files into the old one, so that no session from before the
    renewal can be resumed: its client may no longer be trusted.
    """

    _files: WatchedFiles[Tls]

    def __new__(cls, files: WatchedFiles[Tls]) -> Self:
        """Make a context of a server."""
        self = super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)
        self._files = files
        return self

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,  # noqa: FBT002  # the signature is ssl's
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        """Start a handshake."""
        newest = self._files.value.context
        return newest.wrap_bio(incoming, outgoing, server_side, server_hostname, session)


def certificate_names(certificate: Mapping[str, Any]) -> tuple[str, ...]:
    """Common name and alternative names of a certificate, in the form of the ssl module."""
    common = [value for part in certificate.get("subject", ()) for name, value in part if name == "commonName"]
    return (*common[:1], *(value for _, value in certificate.get("subjectAltName", ())))


def names_of_peer(auth_context: Mapping[str, Iterable[bytes]]) -> tuple[str, ...]:
    """The same from the authentication context of a call, in the form of grpcio."""
    fields = ("x509_common_name", "x509_subject_alternative_name")
    return tuple(name.decode(errors="replace") for field in fields for name in auth_context.get(field, ()))


def server_credentials(files: WatchedFiles[Tls]) -> grpc.ServerCredentials:
    """Credentials for grpcio, which asks at each handshake whether the files were renewed."""
    first = files.value
    return grpc.dynamic_ssl_server_credentials(
        first.configuration(), _renewals(files, first), first.authority is not None
    )


def _renewals(files: WatchedFiles[Tls], current: Tls) -> Callable[[], grpc.ServerCertificateConfiguration]:
    def fetch() -> grpc.ServerCertificateConfiguration:
        nonlocal current
        if (newest := files.value) is current:
            return None  # type: ignore[return-value]  # means nothing new; the stubs do not know that
        current = newest
        return newest.configuration()

    return fetch
