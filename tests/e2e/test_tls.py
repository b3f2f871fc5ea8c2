"""TLS and mutual TLS on both fronts: who gets in, who does not, and settings that cannot work."""

from __future__ import annotations

import select
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
import trustme
from tidemark.v1 import scoring_pb2, scoring_pb2_grpc

from tests.conftest import Run
from tests.e2e.raw_client import RawClient
from tests.e2e.server_process import ServerProcess
from tests.waiting import PATIENCE_S

KNOWN = "900"

pytestmark = pytest.mark.both_fronts

SCORE = "/tidemark.v1.ScoringService/ScoreCustomer"
REQUEST = scoring_pb2.ScoreCustomerRequest(customer_id=KNOWN)


@dataclass(frozen=True)
class Files:
    """PEM files: two authorities, what the first has certified, and keys that do not fit or do not open."""

    folder: Path

    def __getattr__(self, name: str) -> str:
        return str(self.folder / f"{name}.pem")

    def read(self, name: str) -> bytes:
        return (self.folder / f"{name}.pem").read_bytes()


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("tls")
    for authority in ("ca", "other_ca"):
        issuer = trustme.CA()
        issuer.cert_pem.write_to_path(folder / f"{authority}.pem")
        prefix = authority.removesuffix("ca")
        for name in ("server", "client"):
            issued = issuer.issue_cert("localhost", "127.0.0.1")
            issued.private_key_pem.write_to_path(folder / f"{prefix}{name}_key.pem")
            for part in issued.cert_chain_pems:
                part.write_to_path(folder / f"{prefix}{name}.pem", append=True)
    (folder / "nonsense.pem").write_text("nonsense\n")
    return Files(folder)


Start = Callable[..., ServerProcess]


@pytest.fixture(scope="module")
def start(
    front: str,  # noqa: ARG001  # set before a server starts
    loaded_redis: str,
    small_registry: Path,
    files: Files,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Start]:
    usual = ["--registry", str(small_registry), "--redis", loaded_redis, "--port", "0"]
    usual += ["--tls-certificate", files.server, "--tls-key", files.server_key]
    with ExitStack() as stack:

        def start(*options: str) -> ServerProcess:
            server = stack.enter_context(ServerProcess(tmp_path_factory.mktemp("server"), *usual, *options))
            server.wait_for("health is SERVING")
            return server

        yield start


@pytest.fixture(scope="module")
def secure(start: Start) -> ServerProcess:
    """A server with a certificate."""
    return start()


@pytest.fixture(scope="module")
def mutual(start: Start, files: Files) -> ServerProcess:
    """A server that wants one of its clients, too."""
    return start("--tls-client-ca", files.ca)


def score(server: ServerProcess, credentials: grpc.ChannelCredentials | None) -> str:
    """Which customer was scored, or the code of the error."""
    open_, target = grpc.insecure_channel, server.target
    with open_(target) if credentials is None else grpc.secure_channel(target, credentials) as channel:
        try:
            return str(
                scoring_pb2_grpc.ScoringServiceStub(channel)
                .ScoreCustomer(REQUEST, timeout=PATIENCE_S)
                .score.customer_id
            )
        except grpc.RpcError as error:
            return str(error.code().name)


def context(files: Files, *protocols: str, certificate: str = "") -> ssl.SSLContext:
    result = ssl.create_default_context(cafile=files.ca)
    if protocols:
        result.set_alpn_protocols(protocols)
    if certificate:
        result.load_cert_chain(getattr(files, certificate), getattr(files, f"{certificate}_key"))
    return result


def test_a_client_that_trusts_the_authority_is_served(secure: ServerProcess, files: Files) -> None:
    assert score(secure, grpc.ssl_channel_credentials(files.read("ca"))) == KNOWN


def test_a_client_that_trusts_another_authority_refuses(secure: ServerProcess, files: Files) -> None:
    assert score(secure, grpc.ssl_channel_credentials(files.read("other_ca"))) == "UNAVAILABLE"


@pytest.mark.parametrize("protocols", [("h2",), ("h2", "http/1.1"), ("http/1.1", "h2")])
def test_h2_is_agreed_on_where_the_client_knows_it(
    secure: ServerProcess, files: Files, protocols: tuple[str, ...]
) -> None:
    with RawClient(secure.target, tls=context(files, *protocols)) as raw:
        assert isinstance(raw.socket, ssl.SSLSocket)
        assert (raw.socket.selected_alpn_protocol(), raw.socket.version()) == ("h2", "TLSv1.3")
        reply = raw.ask(SCORE, REQUEST.SerializeToString())
        assert scoring_pb2.ScoreCustomerResponse.FromString(reply.only).score.customer_id == KNOWN


def test_old_versions_of_tls_are_refused_and_1_2_is_not(secure: ServerProcess, files: Files) -> None:
    for version, accepted in ((ssl.TLSVersion.TLSv1_1, False), (ssl.TLSVersion.TLSv1_2, True)):
        old = context(files, "h2")
        old.set_ciphers("DEFAULT@SECLEVEL=0")
        with pytest.warns(DeprecationWarning, match="TLSv1_1") if not accepted else ExitStack():
            old.minimum_version = old.maximum_version = version
        try:
            RawClient(secure.target, tls=old).socket.close()
        except (ssl.SSLError, ConnectionError):
            assert not accepted
        else:
            assert accepted


@pytest.mark.parametrize("protocols", [("http/1.1",), ()], ids=["http/1.1", "no ALPN"])
def test_a_client_of_http_1_is_sent_away(
    secure: ServerProcess, files: Files, front: str, protocols: tuple[str, ...]
) -> None:
    host, _, port = secure.target.rpartition(":")
    answer = b""
    try:
        with context(files, *protocols).wrap_socket(
            socket.create_connection((host, int(port)), timeout=PATIENCE_S), server_hostname="localhost"
        ) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            while data := connection.recv(65_536):
                answer += data
    except (ssl.SSLError, ConnectionError):
        assert front == "grpcio"  # which ends the handshake
    if front == "lean":
        assert answer.startswith(b"HTTP/1.1 505 ")
    assert score(secure, grpc.ssl_channel_credentials(files.read("ca"))) == KNOWN


def test_what_is_no_tls_is_closed_without_noise(secure: ServerProcess, files: Files) -> None:
    before = secure.log
    host, _, port = secure.target.rpartition(":")
    for said in (
        b"GET / HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\xff\xff" + bytes(500),
        b"",
    ):
        with closing(socket.create_connection((host, int(port)), timeout=PATIENCE_S)) as connection:
            connection.sendall(said)
            connection.shutdown(socket.SHUT_WR)
            try:
                while connection.recv(65_536):
                    pass
            except ConnectionResetError:
                pass
    assert score(secure, None) == "UNAVAILABLE"
    assert score(secure, grpc.ssl_channel_credentials(files.read("ca"))) == KNOWN
    time.sleep(0.2)
    assert secure.log == before


def test_who_begins_a_handshake_and_stops_holds_up_nobody(secure: ServerProcess, files: Files) -> None:
    host, _, port = secure.target.rpartition(":")
    with ExitStack() as stack:
        waiting = [
            stack.enter_context(closing(socket.create_connection((host, int(port)), timeout=PATIENCE_S)))
            for _ in range(50)
        ]
        for begun in waiting:
            begun.sendall(b"\x16\x03\x01\x02\x00\x01")
        # Before any of those handshakes is given up.
        assert score(secure, grpc.ssl_channel_credentials(files.read("ca"))) == KNOWN
        assert not any(select.select([begun], [], [], 0)[0] for begun in waiting)


def test_mutual_tls_serves_clients_of_its_authority_alone(mutual: ServerProcess, files: Files) -> None:
    def credentials(name: str) -> grpc.ChannelCredentials:
        pair = (files.read(f"{name}_key"), files.read(name)) if name else (None, None)
        return grpc.ssl_channel_credentials(files.read("ca"), *pair)

    assert score(mutual, credentials("client")) == KNOWN
    assert score(mutual, credentials("")) == "UNAVAILABLE"
    assert score(mutual, credentials("other_client")) == "UNAVAILABLE"
    assert score(mutual, None) == "UNAVAILABLE"
    assert "Traceback" not in mutual.log


def test_a_stop_over_tls_ends_idle_connections_in_time(start: Start, files: Files) -> None:
    server = start()
    with RawClient(server.target, tls=context(files, "h2")) as idle:
        idle.ping()
        server.process.terminate()
        idle.look(lambda: idle.closed, PATIENCE_S)
        assert idle.closed
        assert {code for _, code in idle.goaways} == {0}
    assert server.process.wait(PATIENCE_S) == 0
    assert "Traceback" not in server.log


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"certificate": "server", "key": "client_key"}, "TLS"),
        ({"certificate": "server", "key": "missing"}, "missing.pem"),
        ({"certificate": "missing", "key": "server_key"}, "missing.pem"),
        ({"certificate": "nonsense", "key": "server_key"}, "TLS"),
        ({"certificate": "server", "key": "nonsense"}, "TLS"),
        ({"certificate": "server", "key": "server_key", "client_ca": "missing"}, "missing.pem"),
        ({"certificate": "server", "key": "server_key", "client_ca": "nonsense"}, "TLS"),
        ({"certificate": "server"}, "tls_key"),
        ({"key": "server_key"}, "tls_certificate"),
        ({"client_ca": "ca"}, "tls_certificate"),
    ],
)
@pytest.mark.any_front
def test_what_cannot_work_ends_in_one_line(
    options: dict[str, str], said: str, files: Files, small_registry: Path, run_service: Run
) -> None:
    provided = [
        part for name, file in options.items() for part in (f"--tls-{name}".replace("_", "-"), getattr(files, file))
    ]
    usual = ["--registry", small_registry, "--redis", "redis://127.0.0.1:1", "--port", "0"]
    ended = run_service(*usual, *provided)
    assert ended.is_bad_input, ended
    assert said.replace("_", "-") in ended.err.replace("_", "-")
    assert "value_error" not in ended.err.lower().replace(" ", "_")
