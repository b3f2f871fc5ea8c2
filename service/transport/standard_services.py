"""The standard services of both transports, without I/O: grpc.health.v1 and reflection."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import Default
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from service.api import customers as convert_customers
from service.api import events as convert_events
from service.api import models as convert_models
from service.api import scoring as convert
from service.errors import Code
from service.transport.call_error import CallError

SERVICES: Final = (convert.SERVICE, convert_events.SERVICE, convert_customers.SERVICE, convert_models.SERVICE)
"""Tidemark's services: health reports them beside the whole server (the empty name), and reflection shows them."""
REFLECTION_SERVICES: Final = ("grpc.reflection.v1.ServerReflection", reflection.SERVICE_NAME)
"""Reflection in both versions. They have the same messages, so one implementation answers for both."""
REFLECTION_PATHS: Final = tuple(f"/{service}/ServerReflectionInfo" for service in REFLECTION_SERVICES)
STANDARD_SERVICES: Final = (health.SERVICE_NAME, *REFLECTION_SERVICES)


def _add_reflection_v1() -> None:
    """Describe version 1 of reflection, which the installed package does not have, as version 1alpha under its name."""
    name, pool, file = "grpc/reflection/v1/reflection.proto", Default(), FileDescriptorProto()
    try:
        pool.FindFileByName(name)
    except KeyError:
        reflection_pb2.DESCRIPTOR.CopyToProto(file)
        file.name, file.package = name, "grpc.reflection.v1"
        for field in (field for message in file.message_type for field in message.field if field.type_name):
            field.type_name = field.type_name.replace(".v1alpha.", ".v1.")
        for method in file.service[0].method:
            method.input_type = method.input_type.replace(".v1alpha.", ".v1.")
            method.output_type = method.output_type.replace(".v1alpha.", ".v1.")
        pool.AddSerializedFile(file.SerializeToString())


_add_reflection_v1()

Notify = Callable[[bytes], None]
"""Sends an encoded reply to a watcher of health."""


def method_paths(services: Sequence[str]) -> list[str]:
    """The paths of all methods of some services."""
    pool = Default()
    return [f"/{name}/{method.name}" for name in services for method in pool.FindServiceByName(name).methods]


class Health:
    """The status of the services, and those who watch it."""

    def __init__(self, services: Sequence[str]) -> None:
        self._status: Final = dict.fromkeys(services, health_pb2.HealthCheckResponse.NOT_SERVING)
        self._watchers: Final[dict[Notify, str]] = {}

    def set_serving(self, serving: bool) -> None:
        """Set the status of all services, and notify those who watch one that has changed."""
        new = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        changed = {service for service, status in self._status.items() if status != new}
        self._status.update(dict.fromkeys(changed, new))
        for notify, service in list(self._watchers.items()):
            if service in changed:
                notify(self._reply(new))

    def check(self, request: bytes) -> bytes:
        """Health.Check: the encoded reply; CallError for an unknown service."""
        if (status := self._status.get(self._service(request))) is None:
            raise CallError(Code.NOT_FOUND, "")
        return self._reply(status)

    def watch(self, request: bytes, notify: Notify) -> None:
        """Health.Watch: call ``notify`` with a reply now and at each change, until :meth:`unwatch`."""
        service = self._service(request)
        self._watchers[notify] = service
        notify(self._reply(self._status.get(service, health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)))

    def unwatch(self, notify: Notify) -> None:
        """Send no more changes to a watcher."""
        self._watchers.pop(notify, None)

    def _service(self, request: bytes) -> str:
        return str(_parsed(health_pb2.HealthCheckRequest, request).service)

    def _reply(self, status: Any) -> bytes:
        return bytes(health_pb2.HealthCheckResponse(status=status).SerializeToString())


class Reflection:
    """ServerReflectionInfo, message by message."""

    def __init__(self, services: Sequence[str]) -> None:
        self._servicer = reflection.ReflectionServicer((*services, *REFLECTION_SERVICES))

    def answer(self, request: bytes) -> bytes:
        """The reply to one request of the stream."""
        asked = _parsed(reflection_pb2.ServerReflectionRequest, request)
        (reply,) = self._servicer.ServerReflectionInfo([asked], None)
        return bytes(reply.SerializeToString())


def _parsed(kind: Any, data: bytes) -> Any:
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise CallError(Code.INVALID_ARGUMENT, f"the request is not a {kind.DESCRIPTOR.full_name}") from error
