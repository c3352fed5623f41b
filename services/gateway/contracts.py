"""What the gateway reads from the contracts' descriptor set: methods and their HTTP rules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, cast

from google.api import annotations_pb2, field_behavior_pb2
from google.api.http_pb2 import HttpRule
from google.protobuf.descriptor_pb2 import (
    FieldDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
    ServiceDescriptorProto,
)


@dataclass(frozen=True)
class Method:
    """One method with its HTTP rule; `verb` is in lower case and empty without a rule."""

    service: str
    name: str
    verb: str
    template: str
    body: str
    response_body: str
    streaming: bool
    proto: MethodDescriptorProto
    path: tuple[int, ...]
    """Where its comments are: SourceCodeInfo.Location.path."""
    file: str

    @property
    def grpc_path(self) -> str:
        """The path of its gRPC calls."""
        return f"/{self.service}/{self.name}"


def methods(descriptors: FileDescriptorSet, services: Iterable[str]) -> Iterator[Method]:
    """Return the methods of `services` (full names), in their order."""
    wanted = set(services)
    for file in descriptors.file:
        for index, service in enumerate(file.service):
            name = f"{file.package}.{service.name}"
            if name in wanted:
                yield from _of_service(file.name, name, index, service)


def transcodable(descriptors: FileDescriptorSet) -> FileDescriptorSet:
    """Return the set without `response_body`, which Envoy's transcoder refuses to load.

    What it asks for is done after the transcoder, by `transcode.SCRIPT`.
    """
    made = FileDescriptorSet()
    made.CopyFrom(descriptors)
    for file in made.file:
        file.ClearField("source_code_info")
        for service in file.service:
            for method in service.method:
                if _http_rule(method).response_body:
                    _http_rule(method).ClearField("response_body")
    return made


def field_behaviors(described: FieldDescriptorProto) -> list[str]:
    """Return the names of a field's google.api.field_behavior. Example: "OUTPUT_ONLY"."""
    extension: Any = field_behavior_pb2.field_behavior
    values: list[Any] = list(described.options.Extensions[extension])
    return [field_behavior_pb2.FieldBehavior.Name(value) for value in values]


def _http_rule(method: MethodDescriptorProto) -> HttpRule:
    """Return the method's google.api.http, to be changed in place; an empty one for none."""
    extension: Any = annotations_pb2.http  # the stubs of the two packages differ on its type
    return cast("HttpRule", method.options.Extensions[extension])


def _of_service(
    file: str, name: str, index: int, service: ServiceDescriptorProto
) -> Iterator[Method]:
    for number, method in enumerate(service.method):
        rule = _http_rule(method)
        verb, template = _pattern(rule)
        yield Method(
            service=name,
            name=method.name,
            verb=verb,
            template=template,
            body=rule.body,
            response_body=rule.response_body,
            streaming=method.server_streaming,
            proto=method,
            # FileDescriptorProto.service = 6, ServiceDescriptorProto.method = 2
            path=(6, index, 2, number),
            file=file,
        )


def _pattern(rule: HttpRule) -> tuple[str, str]:
    verb = rule.WhichOneof("pattern")
    if verb is None or verb == "custom":
        return "", ""
    return verb, str(getattr(rule, verb))
