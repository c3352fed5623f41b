"""What Envoy's transcoder leaves open on /v1, in Lua beside it.

Requests: the transcoder drops fields of a body that it does not know; here they are refused.
Responses: `response_body` of the HTTP rules, and the field that is to blame in its own errors.
The script runs for /v1 alone. After transcoding the route is the method's own, so a response finds
in its route's metadata what its method asks for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorSet

from services.gateway.contracts import Method

FILTER = "envoy.filters.http.lua"


def response_bodies(methods: Iterable[Method]) -> dict[str, dict[str, Any]]:
    """Return route metadata by gRPC path, for methods with `response_body`."""
    return {
        method.grpc_path: {"filter_metadata": {FILTER: {"response_body": method.response_body}}}
        for method in methods
        if method.response_body
    }


def script(descriptors: FileDescriptorSet, methods: Iterable[Method]) -> str:
    """Return the Lua script for these methods."""
    messages = dict(_messages(descriptors))
    rules = list(_bodies(methods, messages))
    needed: dict[str, dict[str, str]] = {}
    for rule in rules:
        _collect(rule.message, messages, needed)
    schema = "".join(
        f"  [{_quote(name)}] = {_table(fields)},\n" for name, fields in sorted(needed.items())
    )
    bodies = "".join(
        f"  {{{', '.join(map(_quote, (rule.verb, rule.pattern, rule.message, rule.prefix)))}}},\n"
        for rule in rules
    )
    return f"local schema = {{\n{schema}}}\nlocal bodies = {{\n{bodies}}}\n{_SCRIPT}"


def path_pattern(template: str) -> str:
    """Return the Lua pattern of an HTTP rule's path template (google.api.http).

    A variable is one segment where its own template is `*`, as all of ours are.
    """
    pattern = re.sub(r"\{[^=}]+=([^}]+)\}", r"\1", template)
    pattern = re.sub(r"\{[^}]+\}", "*", pattern)
    escaped = "".join(c if c == "*" or c.isalnum() or c == "/" else f"%{c}" for c in pattern)
    return "^" + escaped.replace("*", "[^/:]+") + "$"


@dataclass(frozen=True)
class _Body:
    """What the body of a verb and path is: a message, at `prefix` of the request."""

    verb: str
    pattern: str
    message: str
    prefix: str


def _bodies(methods: Iterable[Method], messages: dict[str, DescriptorProto]) -> Iterator[_Body]:
    for method in methods:
        if not method.body:
            continue
        message, prefix = method.proto.input_type, ""
        if method.body != "*":
            field = next(f for f in messages[message].field if f.name == method.body)
            message, prefix = field.type_name, f"{field.name}."
        yield _Body(method.verb.upper(), path_pattern(method.template), message, prefix)


def _messages(descriptors: FileDescriptorSet) -> Iterator[tuple[str, DescriptorProto]]:
    for file in descriptors.file:
        for message in file.message_type:
            yield from _nested(f".{file.package}.{message.name}", message)


def _nested(name: str, message: DescriptorProto) -> Iterator[tuple[str, DescriptorProto]]:
    yield name, message
    for inner in message.nested_type:
        yield from _nested(f"{name}.{inner.name}", inner)


def _collect(
    name: str, messages: dict[str, DescriptorProto], found: dict[str, dict[str, str]]
) -> None:
    """Add a message's fields, by both names that JSON may use, and those of messages in it."""
    if name in found:
        return
    fields = found[name] = {}
    for field in messages[name].field:
        inner = _checked_type(field, messages)
        fields[field.name] = fields[field.json_name] = inner
        if inner:
            _collect(inner, messages, found)


def _checked_type(field: FieldDescriptorProto, messages: dict[str, DescriptorProto]) -> str:
    """Return the message whose fields are to be checked; empty for values, maps, Google's own."""
    name = field.type_name
    if field.type != FieldDescriptorProto.TYPE_MESSAGE or name.startswith(".google."):
        return ""
    return "" if messages[name].options.map_entry else name


def _table(fields: dict[str, str]) -> str:
    pairs = (f"[{_quote(name)}]={_quote(kind)}" for name, kind in fields.items())
    return "{" + ", ".join(pairs) + "}"


def _quote(text: str) -> str:
    """Return a Lua string; JSON's escapes of ASCII text are Lua's as well."""
    return json.dumps(text)


_SCRIPT = r"""
local find, sub, byte = string.find, string.sub, string.byte

-- Each of these returns the position after a value, or nil where the text is no JSON: then the
-- transcoder says so. `unknown` is set to the path of the first field that the schema lacks.
local unknown
local value

local function string_end(text, at)
  while true do
    local stop = find(text, '["\\]', at)
    if not stop then return nil end
    if byte(text, stop) == 34 then return stop + 1 end
    at = stop + 2
  end
end

local function skip(text, at)
  return find(text, "[^ \t\r\n]", at)
end

local function object(text, at, fields, path)
  at = skip(text, at)
  if not at then return nil end
  if sub(text, at, at) == "}" then return at + 1 end
  while true do
    if sub(text, at, at) ~= '"' then return nil end
    local stop = string_end(text, at + 1)
    if not stop then return nil end
    local key = sub(text, at + 1, stop - 2)
    local inner = fields and fields[key]
    if fields and inner == nil and not unknown then unknown = path .. key end
    at = skip(text, stop)
    if not at or sub(text, at, at) ~= ":" then return nil end
    at = value(text, at + 1, inner and schema[inner], path .. key .. ".")
    at = at and skip(text, at)
    if not at then return nil end
    local mark = sub(text, at, at)
    if mark == "}" then return at + 1 end
    if mark ~= "," then return nil end
    at = skip(text, at + 1)
    if not at then return nil end
  end
end

local function array(text, at, fields, path)
  at = skip(text, at)
  if not at then return nil end
  if sub(text, at, at) == "]" then return at + 1 end
  while true do
    at = value(text, at, fields, path)
    at = at and skip(text, at)
    if not at then return nil end
    local mark = sub(text, at, at)
    if mark == "]" then return at + 1 end
    if mark ~= "," then return nil end
    at = at + 1
  end
end

local depth = 0
value = function(text, at, fields, path)
  at = skip(text, at)
  if not at or depth > 100 then return nil end
  local mark = sub(text, at, at)
  if mark == '"' then return string_end(text, at + 1) end
  if mark == "{" or mark == "[" then
    depth = depth + 1
    local stop = (mark == "{" and object or array)(text, at + 1, fields, path)
    depth = depth - 1
    return stop
  end
  local _, stop = find(text, "^[%w.+-]+", at)
  return stop and stop + 1
end

local function with(template, mark, text)
  local from, to = find(template, mark, 1, true)
  return sub(template, 1, from - 1) .. text .. sub(template, to + 1)
end

function envoy_on_request(handle)
  local headers = handle:headers()
  local verb = headers:get(":method")
  if verb == "GET" or verb == "DELETE" or verb == "OPTIONS" then return end
  local path = headers:get(":path"):match("^[^?]*")
  for _, rule in ipairs(bodies) do
    if rule[1] == verb and path:match(rule[2]) then
      local body = handle:body()
      if not body or body:length() == 0 then return end
      local text = body:getBytes(0, body:length())
      unknown, depth = nil, 0
      value(text, 1, schema[rule[3]], rule[4])
      if unknown then
        -- Becomes JSON as every reply of Envoy's own does, and passes the function below.
        handle:respond({[":status"] = "400"}, unknown .. ": there is no such field")
      end
      return
    end
  end
end

-- What the transcoder's own errors say is to blame; nil where they name nothing.
local function field_of(text)
  if text:find("oneof field 'source' is already set", 1, true) then return "function.source" end
  return text:match('"message":"([%w_][%w_.%[%]-]*): ')
    or text:match('Could not find field \\"([^"\\]+)\\"')
end

local function replace(handle, text)
  handle:headers():replace("content-length", tostring(#text))
  handle:body():setBytes(text)
end

function envoy_on_response(handle)
  local headers = handle:headers()
  if headers:get("content-type") ~= "application/json" then return end
  local status = headers:get(":status")
  if status == "200" then
    local wrapper = handle:metadata():get("response_body")
    local body = wrapper and handle:body()
    if not body then return end
    -- A message of one field is written as {"field":{...}} without spaces: both ends come off.
    local text = body:getBytes(0, body:length())
    local start = '{"' .. wrapper .. '":'
    if sub(text, 1, #start) == start then replace(handle, sub(text, #start + 1, -2)) end
  elseif status == "400" then
    local body = handle:body()
    if not body then return end
    local text = body:getBytes(0, body:length())
    local field = field_of(text)
    local mark = '"metadata":{"fix"'
    -- Envoy's own replies have their keys sorted; those of services have the field already.
    if sub(text, 1, 20) ~= '{"code":3,"details":' then return end
    if not field or not find(text, mark, 1, true) then return end
    text = with(text, mark, '"metadata":{"field":"' .. field .. '","fix"')
    if field == "function.source" then text = text:gsub('"INVALID_FIELD"', '"INVALID_SOURCE"') end
    replace(handle, text)
  end
end
"""
