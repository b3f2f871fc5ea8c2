"""TLS files that are renewed while the server serves, whole or torn, and callers who are known by their certificate."""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import pytest
import trustme
from tidemark.v1 import events_pb2_grpc, scoring_pb2, scoring_pb2_grpc

from tests.e2e.live import ALONE, Live, Request, Start, event, someone, starter, use_up
from tests.e2e.server_process import ServerProcess
from tests.waiting import PATIENCE_S

KNOWN = "900"

pytestmark = pytest.mark.both_fronts

REQUEST = scoring_pb2.ScoreCustomerRequest(customer_id=KNOWN)
ENDED = (ssl.SSLError, ConnectionError, AssertionError)


class Pki:
    """The files of a server, and an authority whose certificates are in them; each can be renewed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = trustme.CA()
        self.issue()
        self.trust()

    @property
    def options(self) -> list[str]:
        return ["--tls-certificate", str(self.folder / "server.pem"), "--tls-key", str(self.folder / "key.pem")]

    @property
    def mutual(self) -> list[str]:
        return [*self.options, "--tls-client-ca", str(self.folder / "clients.pem")]

    def issue(self, *parts: str) -> None:
        """A new certificate for the server, or only some of its files, each written aside and moved into place."""
        issued = self.authority.issue_cert("localhost", "127.0.0.1")
        files = {"server": issued.cert_chain_pems[0].bytes(), "key": issued.private_key_pem.bytes()}
        for name in parts or files:
            (self.folder / "aside").write_bytes(files[name])
            (self.folder / "aside").rename(self.folder / f"{name}.pem")

    def trust(self, *authorities: trustme.CA) -> None:
        """Whose clients get in: written in place."""
        pems = [authority.cert_pem.bytes() for authority in authorities or (self.authority,)]
        (self.folder / "clients.pem").write_bytes(b"".join(pems))

    @property
    def served(self) -> str:
        """The certificate in the server's file, as PEM."""
        return (self.folder / "server.pem").read_text()

    def credentials(
        self, authority: trustme.CA | None = None, *names: str, common: str = ""
    ) -> grpc.ChannelCredentials:
        """Trust in this authority, and a client's certificate of another or the same one."""
        roots = self.authority.cert_pem.bytes()
        if authority is None:
            return grpc.ssl_channel_credentials(roots)
        issued = authority.issue_cert(*names, common_name=common or None)
        return grpc.ssl_channel_credentials(roots, issued.private_key_pem.bytes(), issued.cert_chain_pems[0].bytes())


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return Pki(tmp_path)


@pytest.fixture
def start(
    front: str,  # noqa: ARG001  # set before a server starts
    loaded_redis: str,
    small_registry: Path,
    tmp_path: Path,
) -> Iterator[Start]:
    with ExitStack() as stack:
        yield starter(stack, small_registry, tmp_path, loaded_redis)


@contextmanager
def secure(server: ServerProcess, credentials: grpc.ChannelCredentials) -> Iterator[grpc.Channel]:
    with grpc.secure_channel(server.target, credentials, ALONE) as channel:
        yield channel


def score(channel: grpc.Channel, token: str = "") -> str:
    """Which customer was scored, or the code of the error."""
    metadata = [("authorization", f"Bearer {token}")] if token else None
    try:
        reply = scoring_pb2_grpc.ScoringServiceStub(channel).ScoreCustomer(
            REQUEST, timeout=PATIENCE_S, metadata=metadata
        )
    except grpc.RpcError as error:
        return str(error.code().name)
    return str(reply.score.customer_id)


def shown(server: ServerProcess) -> str:
    """The certificate that the server shows a new connection, as PEM."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    host, _, port = server.target.rpartition(":")
    with (
        socket.create_connection((host, int(port)), timeout=PATIENCE_S) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        result = connection.getpeercert(binary_form=True)
    assert result is not None
    return ssl.DER_cert_to_PEM_cert(result)


def same(one: str, other: str) -> bool:
    return one.split() == other.split()


def test_a_renewed_certificate_is_shown_to_new_connections_and_a_torn_one_never(start: Start, pki: Pki) -> None:
    server = start(*pki.options)
    first = pki.served
    with secure(server, pki.credentials()) as open_before:
        assert score(open_before) == KNOWN
        assert same(shown(server), first)
        pki.issue("server")  # its key comes later
        server.wait_for("TLS: the new contents cannot be used, the old ones stay in use.*KEY_VALUES_MISMATCH")
        assert same(shown(server), first)
        (pki.folder / "key.pem").write_bytes((pki.folder / "key.pem").read_bytes()[:100])
        server.wait_for(r"the old ones stay in use(.|\n)*the old ones stay in use")
        assert same(shown(server), first)
        (pki.folder / "key.pem").unlink()
        server.wait_for("the old ones stay in use.*No such file")
        assert same(shown(server), first)
        pki.issue()
        server.wait_for("TLS: renewed")
        assert not same(pki.served, first)
        assert same(shown(server), pki.served)
        with secure(server, pki.credentials()) as after:
            assert score(after) == score(open_before) == KNOWN
    assert server.log.count("the old ones stay in use") == 3
    assert server.log.count("TLS: renewed") == 1


def test_clients_of_an_authority_that_was_taken_out_do_not_come_back(start: Start, pki: Pki, front: str) -> None:
    other = trustme.CA()
    server = start(*pki.mutual)

    def outcome(authority: trustme.CA) -> str:
        with secure(server, pki.credentials(authority, "client")) as channel:
            return score(channel)

    assert (outcome(pki.authority), outcome(other)) == (KNOWN, "UNAVAILABLE")
    with ExitStack() as stack:
        resumable = stack.enter_context(resuming(server, pki))
        pki.trust(other)
        server.wait_for("TLS: renewed")
        assert (outcome(pki.authority), outcome(other)) == ("UNAVAILABLE", KNOWN)
        assert resumable() == "refused", front
    pki.trust(pki.authority, other)
    server.wait_for(r"TLS: renewed(.|\n)*TLS: renewed")
    assert (outcome(pki.authority), outcome(other)) == (KNOWN, KNOWN)


@contextmanager
def resuming(server: ServerProcess, pki: Pki) -> Iterator[Callable[[], str]]:
    """A client that got in before, and tries again with the session that it was given then (TLS 1.2)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=pki.authority.cert_pem.bytes().decode())
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    pki.authority.issue_cert("client").configure_cert(context)
    host, _, port = server.target.rpartition(":")

    def connect(session: ssl.SSLSession | None) -> ssl.SSLSession | None:
        with (
            socket.create_connection((host, int(port)), timeout=PATIENCE_S) as plain,
            context.wrap_socket(plain, server_hostname="localhost", session=session) as connection,
        ):
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\4" + bytes(5))
            assert connection.recv(100)
            return connection.session

    session = connect(None)

    def again() -> str:
        try:
            connect(session)
        except ENDED:
            return "refused"
        return "let in"

    assert again() == "let in"
    yield again


def test_a_certificate_is_a_caller_by_its_common_or_alternative_name(start: Start, pki: Pki, tmp_path: Path) -> None:
    token_hash = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"  # of "test"
    entries = [
        {"name": "by-san", "certificate": "jobs.example", "scopes": ["score"]},
        {"name": "by-cn", "certificate": "nightly", "scopes": ["events"], "quota": 10},
        {"name": "by-token", "sha256": token_hash, "scopes": ["score"]},
    ]
    (tmp_path / "callers.json").write_text(json.dumps({"caller": entries}))
    server = start(*pki.mutual, "--callers", str(tmp_path / "callers.json"))

    def outcomes(*names: str, common: str = "", token: str = "") -> tuple[str, str]:
        with secure(server, pki.credentials(pki.authority, *names, common=common)) as channel:
            events = events_pb2_grpc.EventServiceStub(channel)
            metadata = [("authorization", f"Bearer {token}")] if token else None
            try:
                events.RecordEvents(Request(events=[event(someone())]), timeout=PATIENCE_S, metadata=metadata)
            except grpc.RpcError as error:
                return score(channel, token), str(error.code().name)
            return score(channel, token), "OK"

    assert outcomes("other.example", "jobs.example") == (KNOWN, "PERMISSION_DENIED")
    assert outcomes("other.example", common="nightly") == ("PERMISSION_DENIED", "OK")
    assert outcomes("other.example", common="other") == ("UNAUTHENTICATED", "UNAUTHENTICATED")
    assert outcomes("other.example", token="test") == (KNOWN, "PERMISSION_DENIED")
    assert outcomes("jobs.example", token="wrong") == ("UNAUTHENTICATED", "UNAUTHENTICATED")
    with secure(server, pki.credentials(pki.authority, "nightly.example", common="nightly")) as channel:
        live = Live(channel)
        with pytest.raises(grpc.RpcError, match="quota"):
            use_up(lambda: live.record(*(event(someone()) for _ in range(9))))
