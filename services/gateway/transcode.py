"""What is done to /v1 responses after the transcoder: `response_body`, and errors with a field.

The script runs in Envoy for /v1 alone. After transcoding the route is the method's own, so its
metadata says what the method asks for.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from services.gateway.contracts import Method

FILTER = "envoy.filters.http.lua"

# The transcoder writes a response of one field as {"field":{...}} without spaces, so taking the
# wrapper off is taking both ends off. A message that is not set leaves {}.
SCRIPT = """
local function replace(handle, text)
  handle:headers():replace("content-length", tostring(#text))
  handle:body():setBytes(text)
end

-- What the transcoder's parser says is to blame; nil where it names nothing.
local function field_of(text)
  return text:match("no such field: '([^']+)'")
    or text:match("Cannot find field: ([%w_.%-]+)")
    or text:match("%(([%w_][%w_.%[%]%-]*)%)")
end

local function escape(text)
  return (text:gsub('[%c"\\\\\\\\]', function(c) return string.format("\\\\\\\\u%04x", c:byte()) end))
end

function envoy_on_response(handle)
  local headers = handle:headers()
  local kind = headers:get("content-type")
  if kind ~= "application/json" then return end
  local status = headers:get(":status")
  if status == "200" then
    local wrapper = handle:metadata():get("response_body")
    if not wrapper then return end
    local body = handle:body()
    if not body then return end
    local text = body:getBytes(0, body:length())
    local start = '{"' .. wrapper .. '":'
    if text:sub(1, #start) == start then replace(handle, text:sub(#start + 1, -2)) end
  end
end
"""


def response_bodies(methods: Iterable[Method]) -> dict[str, dict[str, Any]]:
    """Return route metadata by gRPC path, for methods with `response_body`."""
    return {
        method.grpc_path: {"filter_metadata": {FILTER: {"response_body": method.response_body}}}
        for method in methods
        if method.response_body
    }
