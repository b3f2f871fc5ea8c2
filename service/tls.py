"""TLS for both fronts, from the same three settings: certificate, key, and the authority over clients."""

from __future__ import annotations

import ssl

import grpc

from feature_store.errors import InputError
from service.settings import Settings


def server_context(settings: Settings) -> ssl.SSLContext | None:
    """For the lean front; None without TLS. InputError where the files cannot be used."""
    if settings.tls_certificate is None:
        return None
    for path in (settings.tls_certificate, settings.tls_key, settings.tls_client_ca):
        if path is not None and not path.is_file():
            raise InputError(f"TLS: there is no file {path}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    try:
        context.load_cert_chain(settings.tls_certificate, settings.tls_key, password=_no_password)
        if settings.tls_client_ca is not None:
            context.load_verify_locations(settings.tls_client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except (ssl.SSLError, OSError, ValueError) as error:
        raise InputError(f"TLS: certificate, key and authority do not open or do not fit ({error})") from error
    return context


def server_credentials(settings: Settings) -> grpc.ServerCredentials | None:
    """For grpcio, after the same checks."""
    if server_context(settings) is None or settings.tls_certificate is None or settings.tls_key is None:
        return None
    authority = None if settings.tls_client_ca is None else settings.tls_client_ca.read_bytes()
    pair = settings.tls_key.read_bytes(), settings.tls_certificate.read_bytes()
    return grpc.ssl_server_credentials([pair], authority, authority is not None)


def _no_password() -> str:
    raise ValueError("the key has a password: give one without")
