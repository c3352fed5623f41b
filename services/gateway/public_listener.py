"""The public port: functions by path and by host, pages, and the way to the API.

A function's request passes three filters and no tracer; all that the API needs is in a listener of
its own (`api_listener`), because what a connection manager has switched on costs every request.
"""

from __future__ import annotations

from services.gateway.envoy_config import (
    API,
    HOLD,
    HOLD_HTTP2,
    HTTP_FILTERS,
    METADATA,
    ON,
    ORIGINAL_PATH,
    PAGES,
    TIMEOUT,
    Config,
    Inputs,
    listener,
    request_ids,
    router,
    same_path,
    set_header,
    unbounded,
)
from services.gateway.ingress_replies import ingress_replies
from services.gateway.local_reply import function_replies
from services.gateway.tls import transport_socket

_TIME_LIMIT = "envoy.filters.http.header_mutation"
# Says what x-forwarded-for says.
_OF_ENVOY = ["x-envoy-external-address"]
API_PREFIXES = ("/v1/", "/mayfly.v1.", "/grpc.health.v1.", "/grpc.reflection.")
PAGE_PATHS = ("/", "/openapi.json", "/healthz")


def public_listener(inputs: Inputs) -> Config:
    """Return the listener of the public port."""
    manager: Config = {
        "codec_type": "AUTO",
        "server_name": "mayfly",
        "server_header_transformation": "APPEND_IF_ABSENT",
        "use_remote_address": True,
        "xff_num_trusted_hops": inputs.trusted_proxies,
        "request_headers_timeout": "10s",
        "request_timeout": "0s",  # would cut long uploads and WebSockets
        "stream_idle_timeout": "0s",  # an open stream ends with its function alone
        "common_http_protocol_options": {
            "idle_timeout": "300s",
            "max_headers_count": 100,
            # A_B and A-B are one to many servers (CGI, WSGI): no smuggling of stripped headers.
            "headers_with_underscores_action": "DROP_HEADER",
        },
        "http_protocol_options": {
            "accept_http_10": True,
            "default_host_for_http_10": "localhost",
            "enable_trailers": True,
        },
        "http2_protocol_options": {
            "max_concurrent_streams": 1000,
            "initial_stream_window_size": 1024 * 1024,
            "initial_connection_window_size": 4 * 1024 * 1024,
            "allow_connect": True,  # WebSocket over HTTP/2, RFC 8441
        },
        "early_header_mutation_extensions": [_strip_trusted_headers(inputs)],
        "local_reply_config": function_replies(),
        "route_config": {
            "name": "public",
            "ignore_port_in_host_matching": True,
            "virtual_hosts": [*_function_hosts(inputs), _platform_host()],
        },
        "http_filters": [
            {"name": _TIME_LIMIT, "typed_config": time_limit(), "disabled": True},
            ingress_replies(),
            router(),
        ],
    }
    made = listener("public", inputs.listen, manager | same_path() | request_ids())
    if inputs.tls_secret:
        made["filter_chains"][0]["transport_socket"] = transport_socket(inputs.tls_secret)
    return made


def time_limit() -> Config:
    """Give the router a function's own time limit, which is in its cluster's metadata.

    Unlike a route's timeout, that of a try ends with the response's headers: it never cuts a
    stream, and it begins when the request's body is complete.
    """
    limit = f"%METADATA(CLUSTER:{METADATA}:{TIMEOUT})%"
    append = {"append": set_header("x-envoy-upstream-rq-per-try-timeout-ms", limit)}
    return {
        "@type": f"{HTTP_FILTERS}.header_mutation.v3.HeaderMutation",
        "mutations": {"request_mutations": [append]},
    }


def _strip_trusted_headers(inputs: Inputs) -> Config:
    """Remove a client's own copies of the headers that the platform sets and believes."""
    prefixes = ("x-mayfly-", "x-envoy-")
    return {
        "name": "strip",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.http"
            ".early_header_mutation.header_mutation.v3.HeaderMutation",
            "mutations": [
                {"remove": ORIGINAL_PATH},
                {"remove": "x-forwarded-prefix"},
                *([] if inputs.trusted_proxies else [{"remove": "x-forwarded-host"}]),
                *({"remove_on_match": {"key_matcher": {"prefix": prefix}}} for prefix in prefixes),
            ],
        },
    }


def _platform_host() -> Config:
    return {
        "name": "platform",
        "domains": ["*"],
        "routes": [
            _path_route(),
            *(
                {"name": "api", "match": {"prefix": prefix}, "route": unbounded({"cluster": API})}
                for prefix in API_PREFIXES
            ),
            *(
                {
                    "name": "page",
                    "match": {"path": path},
                    "route": {"cluster": PAGES, "timeout": "15s"},
                }
                for path in PAGE_PATHS
            ),
            {"name": "nothing", "match": {"prefix": "/"}, "direct_response": {"status": 404}},
        ],
    }


def _path_route() -> Config:
    rewrite = {"pattern": {"regex": "^/f/[^/]+/?(.*)$"}, "substitution": r"/\1"}
    return {
        "name": "function-by-path",
        "match": {"prefix": "/f/"},
        "route": _function_action(_BY_PATH) | {"regex_rewrite": rewrite},
        "typed_per_filter_config": {_TIME_LIMIT: ON},
        "request_headers_to_remove": _OF_ENVOY,
        # A cluster has the function's id for a name; a held request's prefix is set by `_hold`.
        "request_headers_to_add": [
            set_header(ORIGINAL_PATH, "%REQ(:PATH)%"),
            set_header("x-forwarded-prefix", "/f/%UPSTREAM_CLUSTER_RAW%"),
        ],
    }


def _function_hosts(inputs: Inputs) -> list[Config]:
    if not inputs.domains:
        return []
    route: Config = {
        "name": "function-by-host",
        "match": {"prefix": "/"},
        "route": _function_action(_by_host(inputs.domains)),
        "typed_per_filter_config": {_TIME_LIMIT: ON},
        "request_headers_to_remove": _OF_ENVOY,
        "request_headers_to_add": [set_header(ORIGINAL_PATH, "%REQ(:PATH)%")],
    }
    domains = [f"*.{domain}" for domain in inputs.domains]
    return [{"name": "functions", "domains": domains, "routes": [route]}]


def _function_action(script: str) -> Config:
    kind = "envoy.extensions.router.cluster_specifiers.lua.v3.LuaConfig"
    plugin = {
        "name": "envoy.router.cluster_specifier_plugin.lua",
        "typed_config": {
            "@type": f"type.googleapis.com/{kind}",
            "source_code": {"inline_string": script},
            "default_cluster": HOLD,
        },
    }
    return unbounded(
        {
            "inline_cluster_specifier_plugin": {"extension": plugin},
            "upgrade_configs": [{"upgrade_type": "websocket"}],
            # For endpoints that have a host name of their own (`xds.assignment`); the others get
            # the caller's Host.
            "auto_host_rewrite": True,
            "append_x_forwarded_host": True,
        }
    )


# An id begins with a letter or a digit. What has no cluster (the first moments, unknown, ended and
# failed functions) is held by the control process, which knows which of these it is.
_CHOOSE = f"""
local match = string.match
local function choose(handle, headers, id)
  if id and handle:getCluster(id) ~= nil then return id end
  local kind = headers:get("content-type")
  if kind and (match(kind, "^application/grpc$") or match(kind, "^application/grpc[+;]")) then
    return "{HOLD_HTTP2}"
  end
  return "{HOLD}"
end
"""
_BY_PATH = (
    _CHOOSE
    + """
function envoy_on_route(handle)
  local headers = handle:headers()
  local path = headers:get(":path")
  local id = match(path, "^/f/([a-z0-9][a-z0-9-]*)[/?]") or match(path, "^/f/([a-z0-9][a-z0-9-]*)$")
  return choose(handle, headers, id)
end
"""
)


def _by_host(domains: tuple[str, ...]) -> str:
    """Return the script that takes the function's id from the first label of the host."""
    patterns = ", ".join(
        '"^([a-z0-9][a-z0-9-]*)%.' + domain.replace("-", "%-").replace(".", "%.") + '[:.]?%d*$"'
        for domain in domains
    )
    return (
        _CHOOSE
        + f"""
local patterns = {{ {patterns} }}
function envoy_on_route(handle)
  local headers = handle:headers()
  local host = headers:get(":authority"):lower()
  for _, pattern in ipairs(patterns) do
    local id = match(host, pattern)
    if id then return choose(handle, headers, id) end
  end
  return choose(handle, headers, nil)
end
"""
    )
