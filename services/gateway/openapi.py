"""The OpenAPI 3.1 document of /v1, made from the contracts' descriptor set and its comments.

https://spec.openapis.org/oas/v3.1.0 · HTTP rules: google/api/http.proto · JSON forms:
https://protobuf.dev/programming-guides/json/
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorSet,
)

from services.gateway.contracts import Method, field_behaviors, methods

Schema = dict[str, Any]
_Field = FieldDescriptorProto

_VARIABLE = re.compile(r"\{([^=}]+)(?:=([^}]+))?\}")
_SCALARS: dict[int, Schema] = {
    _Field.TYPE_DOUBLE: {"type": "number", "format": "double"},
    _Field.TYPE_FLOAT: {"type": "number", "format": "float"},
    _Field.TYPE_INT64: {"type": "string", "format": "int64"},
    _Field.TYPE_UINT64: {"type": "string", "format": "uint64"},
    _Field.TYPE_INT32: {"type": "integer", "format": "int32"},
    _Field.TYPE_UINT32: {"type": "integer", "format": "int64", "minimum": 0},
    _Field.TYPE_BOOL: {"type": "boolean"},
    _Field.TYPE_STRING: {"type": "string"},
    _Field.TYPE_BYTES: {"type": "string", "contentEncoding": "base64"},
}
_WELL_KNOWN: dict[str, Schema] = {
    ".google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
    ".google.protobuf.Duration": {
        "type": "string",
        "pattern": r"^-?\d+(\.\d{1,9})?s$",
        "examples": ["600s"],
    },
    ".google.protobuf.FieldMask": {"type": "string", "examples": ["env,labels"]},
}
_STATUS: Schema = {
    "type": "object",
    "description": "google.rpc.Status: why a call failed. The detail of type ErrorInfo has the "
    "reason, the fix and the field that is to blame.",
    "properties": {
        "code": {"type": "integer", "format": "int32", "description": "google.rpc.Code."},
        "message": {"type": "string"},
        "details": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "@type": {"type": "string"},
                    "reason": {"type": "string", "examples": ["INVALID_FIELD"]},
                    "domain": {"type": "string", "const": "mayfly"},
                    "metadata": {
                        "type": "object",
                        "properties": {"fix": {"type": "string"}, "field": {"type": "string"}},
                        "additionalProperties": {"type": "string"},
                    },
                },
                "required": ["@type"],
            },
        },
    },
    "required": ["code"],
}


def document(
    descriptors: FileDescriptorSet, services: Iterable[str], url: str, version: str
) -> bytes:
    """Return the document as JSON; `services` are full names, `url` is where /v1 is below."""
    names = list(services)
    types = _Types.read(descriptors)
    paths: dict[str, dict[str, Any]] = {}
    for method in methods(descriptors, names):
        if method.verb:
            path = _path(method.template)
            paths.setdefault(path, {})[method.verb] = _operation(method, types)
    schemas = {name: types.schema(f".mayfly.v1.{name}") for name in types.reached()}
    tags = [{"name": n.rpartition(".")[2], "description": types.service_comment(n)} for n in names]
    made = {
        "openapi": "3.1.0",
        "info": {
            "title": "Mayfly",
            "summary": "Source code to a live URL that ends by itself",
            "version": version,
        },
        "servers": [{"url": url}],
        "tags": tags,
        "paths": paths,
        "components": {"schemas": schemas | {"Status": _STATUS}},
    }
    return json.dumps(made, indent=1).encode()


@dataclass
class _Types:
    """The messages and enums of a descriptor set, by full name with a leading dot."""

    messages: dict[str, DescriptorProto] = field(default_factory=dict[str, DescriptorProto])
    enums: dict[str, EnumDescriptorProto] = field(default_factory=dict[str, EnumDescriptorProto])
    comments: dict[tuple[str, tuple[int, ...]], str] = field(
        default_factory=dict[tuple[str, tuple[int, ...]], str]
    )
    """By full name of the type or file, and the path below it."""
    services: dict[str, str] = field(default_factory=dict[str, str])
    wanted: dict[str, None] = field(default_factory=dict[str, None])

    @classmethod
    def read(cls, descriptors: FileDescriptorSet) -> _Types:
        types = cls()
        for file in descriptors.file:
            places = {
                tuple(place.path): _text(place.leading_comments)
                for place in file.source_code_info.location
                if place.leading_comments
            }
            for path, comment in places.items():
                types.comments[file.name, path] = comment
            for index, message in enumerate(file.message_type):
                types._add(f".{file.package}.{message.name}", message, (4, index), places)
            for index, enum in enumerate(file.enum_type):
                types._add_enum(f".{file.package}.{enum.name}", enum, (5, index), places)
            for index, service in enumerate(file.service):
                name = f"{file.package}.{service.name}"
                types.services[name] = places.get((6, index), "")
        return types

    def _add(
        self,
        name: str,
        message: DescriptorProto,
        at: tuple[int, ...],
        places: dict[tuple[int, ...], str],
    ) -> None:
        self.messages[name] = message
        self._comment(name, at, places)
        for index, inner in enumerate(message.nested_type):
            self._add(f"{name}.{inner.name}", inner, (*at, 3, index), places)
        for index, enum in enumerate(message.enum_type):
            self._add_enum(f"{name}.{enum.name}", enum, (*at, 4, index), places)

    def _add_enum(
        self,
        name: str,
        enum: EnumDescriptorProto,
        at: tuple[int, ...],
        places: dict[tuple[int, ...], str],
    ) -> None:
        self.enums[name] = enum
        self._comment(name, at, places)

    def _comment(self, name: str, at: tuple[int, ...], places: dict[tuple[int, ...], str]) -> None:
        for path, comment in places.items():
            if path[: len(at)] == at:
                self.comments[name, path[len(at) :]] = comment

    def service_comment(self, name: str) -> str:
        return self.services.get(name, "")

    def reached(self) -> Iterator[str]:
        """Yield the short name of every type that is referred to, found while schemas are made."""
        done: set[str] = set()
        while new := [name for name in self.wanted if name not in done]:
            for name in new:
                done.add(name)
                yield _short(name)

    def reference(self, name: str) -> Schema:
        if known := _WELL_KNOWN.get(name):
            return dict(known)
        self.wanted[name] = None
        return {"$ref": f"#/components/schemas/{_short(name)}"}

    def schema(self, name: str) -> Schema:
        if name in self.enums:
            return self._enum(name)
        message = self.messages[name]
        required = [f.json_name for f in message.field if "REQUIRED" in _behaviours(f)]
        made: Schema = {
            "type": "object",
            "description": self.comments.get((name, ()), ""),
            "properties": {
                f.json_name: self.field(f, self.comments.get((name, (2, index)), ""))
                for index, f in enumerate(message.field)
            },
            "additionalProperties": False,
        }
        return made | ({"required": required} if required else {})

    def _enum(self, name: str) -> Schema:
        values = self.enums[name].value
        lines = [self.comments.get((name, ()), "")]
        lines += [
            f"- `{value.name}`: {self.comments.get((name, (2, index)), '')}"
            for index, value in enumerate(values)
        ]
        return {
            "type": "string",
            "description": "\n".join(lines),
            "enum": [value.name for value in values],
        }

    def field(self, described: FieldDescriptorProto, comment: str) -> Schema:
        made = self._value(described)
        if comment:
            made["description"] = comment
        behaviours = _behaviours(described)
        if "OUTPUT_ONLY" in behaviours:
            made["readOnly"] = True
        if "INPUT_ONLY" in behaviours:
            made["writeOnly"] = True
        return made

    def _value(self, described: FieldDescriptorProto) -> Schema:
        entry = self.messages.get(described.type_name)
        if entry is not None and entry.options.map_entry:
            return {"type": "object", "additionalProperties": self._one(entry.field[1])}
        if described.label == _Field.LABEL_REPEATED:
            return {"type": "array", "items": self._one(described)}
        return self._one(described)

    def _one(self, described: FieldDescriptorProto) -> Schema:
        if described.type in (_Field.TYPE_MESSAGE, _Field.TYPE_ENUM):
            return self.reference(described.type_name)
        return dict(_SCALARS[described.type])


def _operation(method: Method, types: _Types) -> Schema:
    comment = types.comments.get((method.file, method.path), "")
    summary, _, description = comment.partition("\n\n")
    made: Schema = {
        "operationId": method.name,
        "tags": [method.service.rpartition(".")[2]],
        "summary": " ".join(summary.split()),
        "parameters": list(_parameters(method, types)),
        "responses": {"200": _response(method, types), "default": _failure()},
    }
    if description:
        made["description"] = description
    if method.body:
        made["requestBody"] = {"required": True, "content": _json(_body(method, types))}
    return made


def _parameters(method: Method, types: _Types) -> Iterator[Schema]:
    in_path: set[str] = set()
    for variable, template in _VARIABLE.findall(method.template):
        in_path.add(variable.partition(".")[0])
        name = _parameter_name(variable, template)
        yield {
            "name": name,
            "in": "path",
            "required": True,
            "description": f"The id in `{template or '*'}`.",
            "schema": {"type": "string"},
        }
    if method.body == "*":
        return
    request = method.proto.input_type
    for index, described in enumerate(types.messages[request].field):
        if described.name == method.body or described.name in in_path:
            continue
        schema = types.field(described, "")
        yield {
            "name": described.name,
            "in": "query",
            "description": types.comments.get((request, (2, index)), ""),
            "schema": schema,
        }


def _body(method: Method, types: _Types) -> Schema:
    request = method.proto.input_type
    if method.body == "*":
        return types.reference(request)
    described = next(f for f in types.messages[request].field if f.name == method.body)
    return types.reference(described.type_name)


def _response(method: Method, types: _Types) -> Schema:
    response = method.proto.output_type
    if method.response_body:
        fields = types.messages[response].field
        response = next(f for f in fields if f.name == method.response_body).type_name
    schema = types.reference(response)
    if not method.streaming:
        return {"description": "OK", "content": _json(schema)}
    return {
        "description": "A stream: one JSON document a line, or, where `Accept` has "
        "text/event-stream, one a server-sent event.",
        "content": _json(schema) | {"text/event-stream": {"schema": schema}},
    }


def _failure() -> Schema:
    return {
        "description": "The call failed.",
        "content": _json({"$ref": "#/components/schemas/Status"}),
    }


def _json(schema: Schema) -> Schema:
    return {"application/json": {"schema": schema}}


def _path(template: str) -> str:
    """Return an HTTP rule's template as a path: {name=functions/*} is functions/{function}."""

    def replace(found: re.Match[str]) -> str:
        inner = found[2] or "*"
        return inner.replace("*", "{" + _parameter_name(found[1], inner) + "}")

    return _VARIABLE.sub(replace, template)


def _parameter_name(variable: str, template: str) -> str:
    collection = template.partition("/")[0] if "/" in template else ""
    return collection.removesuffix("s") or variable.rpartition(".")[2]


def _behaviours(described: FieldDescriptorProto) -> set[str]:
    return set(field_behaviors(described))


def _short(name: str) -> str:
    return name.removeprefix(".mayfly.v1.")


def _text(comment: str) -> str:
    return "\n".join(line.strip() for line in comment.strip().splitlines())
