"""Health and reflection of the lean front, without a connection."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from service.api.scoring import SERVICE
from service.errors import Code
from service.transport.call_error import CallError
from service.transport.standard_services import Health, Reflection

NOT_SERVING, SERVING, SERVICE_UNKNOWN = (
    health_pb2.HealthCheckResponse(status=name).SerializeToString()
    for name in ("NOT_SERVING", "SERVING", "SERVICE_UNKNOWN")
)


def about(service: str) -> bytes:
    return bytes(health_pb2.HealthCheckRequest(service=service).SerializeToString())


@pytest.fixture
def health() -> Health:
    return Health(("", SERVICE))


@pytest.fixture
def reflection() -> Reflection:
    return Reflection((SERVICE, "grpc.health.v1.Health"))


@pytest.mark.parametrize("service", ["", SERVICE])
def test_nothing_serves_until_it_is_said(health: Health, service: str) -> None:
    assert health.check(about(service)) == NOT_SERVING
    health.set_serving(True)
    assert health.check(about(service)) == SERVING
    health.set_serving(False)
    assert health.check(about(service)) == NOT_SERVING


def test_the_health_of_another_service_is_not_found(health: Health) -> None:
    with pytest.raises(CallError) as caught:
        health.check(about("another"))
    assert (caught.value.code, caught.value.message) == (Code.NOT_FOUND, "")


def test_a_watcher_hears_the_state_now_and_what_changes_alone(health: Health) -> None:
    heard: list[bytes] = []
    health.watch(about(SERVICE), heard.append)
    for serving in (False, True, True, False, True):
        health.set_serving(serving)
    assert heard == [NOT_SERVING, SERVING, NOT_SERVING, SERVING]


def test_watchers_hear_of_their_own_service_until_they_leave(health: Health) -> None:
    heard: dict[str, list[bytes]] = {"": [], SERVICE: [], "another": []}
    tell = {service: replies.append for service, replies in heard.items()}
    for service in heard:
        health.watch(about(service), tell[service])
    health.set_serving(True)
    health.unwatch(tell[""])
    health.unwatch(tell[""])  # whoever leaves twice, or never came, is no trouble
    health.set_serving(False)
    assert heard == {
        "": [NOT_SERVING, SERVING],
        SERVICE: [NOT_SERVING, SERVING, NOT_SERVING],
        "another": [SERVICE_UNKNOWN],
    }


def test_a_watcher_may_leave_while_it_is_told(health: Health) -> None:
    heard: list[bytes] = []

    def tell(reply: bytes) -> None:
        heard.append(reply)
        health.unwatch(tell)

    health.watch(about(""), tell)
    health.watch(about(""), heard.append)
    health.set_serving(True)
    assert heard == [NOT_SERVING, NOT_SERVING, SERVING]


def ask(reflection: Reflection, **asked: Any) -> reflection_pb2.ServerReflectionResponse:
    request = reflection_pb2.ServerReflectionRequest(host="here", **asked)
    reply = reflection_pb2.ServerReflectionResponse.FromString(reflection.answer(request.SerializeToString()))
    assert reply.original_request == request
    return reply


def test_reflection_lists_all_services_itself_included(reflection: Reflection) -> None:
    listed = ask(reflection, list_services="").list_services_response.service
    expected = {
        SERVICE,
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
        "grpc.reflection.v1.ServerReflection",
    }
    assert {service.name for service in listed} == expected


@pytest.mark.parametrize(
    "asked",
    [
        {"file_containing_symbol": SERVICE},
        {"file_by_filename": "tidemark/v1/scoring.proto"},
    ],
)
def test_reflection_describes_the_contract(reflection: Reflection, asked: dict[str, str]) -> None:
    files = ask(reflection, **asked).file_descriptor_response.file_descriptor_proto
    assert FileDescriptorProto.FromString(files[0]).name == "tidemark/v1/scoring.proto"


@pytest.mark.parametrize("asked", [{"file_containing_symbol": "no.Such"}, {"file_by_filename": "no.proto"}])
def test_reflection_says_what_it_does_not_find(reflection: Reflection, asked: dict[str, str]) -> None:
    assert ask(reflection, **asked).error_response.error_code == Code.NOT_FOUND


def test_bytes_that_are_no_request_end_the_call(health: Health, reflection: Reflection) -> None:
    for answer in (health.check, reflection.answer, lambda data: health.watch(data, print)):
        with pytest.raises(CallError) as caught:
            answer(b"\xff")
        assert caught.value.code is Code.INVALID_ARGUMENT
    health.set_serving(True)  # who asked so is not told
