"""TLS for both fronts, from the same three settings: certificate, key, and the authority over clients.

The files are watched: connections that begin after a renewal get what is new, those that are open stay as they are.
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
    """What new connections get: a context for the lean front, and the same as PEM for grpcio."""

    context: ssl.SSLContext
    certificate: bytes
    key: bytes
    authority: bytes | None

    def configuration(self) -> grpc.ServerCertificateConfiguration:
        """For grpcio, which uses one up each time that it is given one."""
        return grpc.ssl_server_certificate_configuration([(self.key, self.certificate)], self.authority)


def watched(settings: Settings) -> WatchedFiles[Tls] | None:
    """The files of the settings; None without TLS. InputError where they cannot be used."""
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
        raise InputError(f"TLS: certificate, key and authority do not open or do not fit ({error})") from error
    return context


def _no_password() -> str:
    raise ValueError("the key has a password: give one without")


class NewestContext(ssl.SSLContext):
    """For a server that takes one context for good: each handshake is done by the newest one instead.

    A context of its own for each renewal, rather than new files in the old one, so that no session of before a
    renewal, whose client may not be wanted any more, can be resumed after it.
    """

    _files: WatchedFiles[Tls]

    def __new__(cls, files: WatchedFiles[Tls]) -> Self:
        """Like any context of a server."""
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
        """Begin a connection."""
        newest = self._files.value.context
        return newest.wrap_bio(incoming, outgoing, server_side, server_hostname, session)


def certificate_names(certificate: Mapping[str, Any]) -> tuple[str, ...]:
    """Common name and alternative names, as ssl tells of a certificate."""
    common = [value for part in certificate.get("subject", ()) for name, value in part if name == "commonName"]
    return (*common[:1], *(value for _, value in certificate.get("subjectAltName", ())))


def names_of_peer(told: Mapping[str, Iterable[bytes]]) -> tuple[str, ...]:
    """The same, as grpcio tells of the peer of a call."""
    fields = ("x509_common_name", "x509_subject_alternative_name")
    return tuple(name.decode(errors="replace") for field in fields for name in told.get(field, ()))


def server_credentials(files: WatchedFiles[Tls]) -> grpc.ServerCredentials:
    """For grpcio, which asks at each handshake whether there is something new."""
    first = files.value
    return grpc.dynamic_ssl_server_credentials(
        first.configuration(), _renewals(files, first), first.authority is not None
    )


def _renewals(files: WatchedFiles[Tls], given: Tls) -> Callable[[], grpc.ServerCertificateConfiguration]:
    def fetch() -> grpc.ServerCertificateConfiguration:
        nonlocal given
        if (newest := files.value) is given:
            return None  # type: ignore[return-value]  # means that there is nothing new, which the stubs do not know
        given = newest
        return newest.configuration()

    return fetch
