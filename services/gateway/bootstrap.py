"""Envoy's bootstrap: listener, routes and infrastructure clusters. Values in, configuration out.

The document is JSON in the form of envoy.config.bootstrap.v3.Bootstrap. Functions' clusters are
not in it; they come by ADS (see `xds`). Infrastructure clusters begin with "_", which no function
id does, so no request can name one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from services.gateway.addresses import Address, envoy_address
from services.gateway.local_reply import ORIGINAL_PATH, local_reply_config

Config = dict[str, Any]

HOLD = "_hold"
HOLD_HTTP2 = "_hold_http2"
PAGES = "_pages"
PUBLIC = "_public"
CONTROL = "_control"
DEPLOYER = "_deployer"
BUILDER = "_builder"
JANITOR = "_janitor"

FUNCTION_SERVICE = "mayfly.v1.FunctionService"
BUILD_SERVICE = "mayfly.v1.BuildService"
JANITOR_SERVICE = "mayfly.v1.JanitorService"
PUBLIC_SERVICES = {
    FUNCTION_SERVICE: DEPLOYER,
    BUILD_SERVICE: BUILDER,
    JANITOR_SERVICE: JANITOR,
}
# The deployer's alone: a build is held by functions and by nobody else.
INTERNAL_METHODS = tuple(
    f"/{BUILD_SERVICE}/{method}" for method in ("CreateBuild", "HoldBuild", "ReleaseBuild")
)
ANSWERED_HERE = ("/grpc.health.v1.Health/", "/grpc.reflection.")

_GRPC_ONLY = [{"name": "content-type", "string_match": {"prefix": "application/grpc"}}]

# Says what x-forwarded-for says.
_OF_ENVOY = ["x-envoy-external-address"]

BUFFER_BYTES = 256 * 1024
UNBOUNDED = 1_000_000  # for circuit breakers: the services bound themselves

_HTTP = "type.googleapis.com/envoy.extensions.filters.http"
_TRANSCODER = "envoy.filters.http.grpc_json_transcoder"
_GRPC_WEB = "envoy.filters.http.grpc_web"
_CORS = "envoy.filters.http.cors"
_LUA = "envoy.filters.http.lua"
_BUFFER = "envoy.filters.http.buffer"
_TIME_LIMIT = "envoy.filters.http.header_mutation"
# Where a function's cluster has its time limit, in milliseconds.
METADATA = "mayfly"
TIMEOUT = "timeout_ms"
# Switches a filter on that is off by default and has no configuration of a route's own.
_ON: Config = {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "config": {}}


@dataclass(frozen=True)
class Inputs:
    """What the bootstrap is made from."""

    node: str
    listen: Address
    admin: Address
    control: Address
    hold: Address
    hold_http2: Address
    pages: Address
    public: Address
    deployer: Address
    builder: Address
    janitor: Address
    descriptors: str
    # The Lua beside the transcoder (see `transcode`).
    api_script: str = ""
    # By gRPC path: the metadata of the methods' routes.
    method_metadata: Mapping[str, Config] = field(default_factory=dict[str, Config])
    domains: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    api_body_bytes: int = 60 * 1024 * 1024
    function_trace_percent: float = 0.1


def bootstrap(inputs: Inputs) -> Config:
    """Return the whole configuration."""
    return {
        "node": {"id": inputs.node, "cluster": "mayfly-gateway"},
        "admin": {"address": envoy_address(inputs.admin)},
        # Function clusters have no statistics of their own (24 kB each without); load reports
        # read the hosts' counters, which are not subject to this.
        "stats_config": {
            "stats_matcher": {
                "exclusion_list": {"patterns": [{"safe_regex": {"regex": r"cluster\.[^_].*"}}]}
            }
        },
        # Spans are wanted as soon as they are over; Envoy's own interval is 5 s.
        "layered_runtime": {
            "layers": [
                {
                    "name": "static",
                    "static_layer": {
                        "tracing.opentelemetry.flush_interval_ms": 200,
                        "tracing.opentelemetry.min_flush_spans": 16,
                    },
                }
            ]
        },
        "cluster_manager": {
            "load_stats_config": {
                "api_type": "GRPC",
                "transport_api_version": "V3",
                "grpc_services": [{"envoy_grpc": {"cluster_name": CONTROL}}],
            }
        },
        "dynamic_resources": {
            "ads_config": {
                "api_type": "DELTA_GRPC",
                "transport_api_version": "V3",
                "grpc_services": [{"envoy_grpc": {"cluster_name": CONTROL}}],
            },
            "cds_config": {"ads": {}, "resource_api_version": "V3"},
        },
        "static_resources": {"listeners": [_listener(inputs)], "clusters": _clusters(inputs)},
    }


def _clusters(inputs: Inputs) -> list[Config]:
    one_request = {"max_requests_per_connection": 1}
    return [
        infrastructure_cluster(CONTROL, inputs.control, http2=True),
        infrastructure_cluster(DEPLOYER, inputs.deployer, http2=True),
        infrastructure_cluster(BUILDER, inputs.builder, http2=True),
        infrastructure_cluster(JANITOR, inputs.janitor, http2=True),
        infrastructure_cluster(PUBLIC, inputs.public, http2=True),
        infrastructure_cluster(PAGES, inputs.pages),
        # A held connection becomes the function's own, so it must carry one request alone.
        infrastructure_cluster(HOLD, inputs.hold, options=one_request),
        infrastructure_cluster(HOLD_HTTP2, inputs.hold_http2, http2=True, options=one_request),
    ]


def infrastructure_cluster(
    name: str, address: Address, *, http2: bool = False, options: Config | None = None
) -> Config:
    """Return a static cluster of one address; a host name is looked up again and again."""
    keepalive = {"connection_keepalive": {"interval": "10s", "timeout": "5s"}}
    explicit: Config = (
        {"http2_protocol_options": keepalive} if http2 else {"http_protocol_options": {}}
    )
    if options:  # one request a connection: nothing to keep alive
        explicit = {"http2_protocol_options": {}} if http2 else explicit
    thresholds = dict.fromkeys(
        ("max_connections", "max_pending_requests", "max_requests", "max_retries"), UNBOUNDED
    )
    endpoint = {"endpoint": {"address": envoy_address(address)}}
    return {
        "name": name,
        "type": "STRICT_DNS" if address.is_name else "STATIC",
        "connect_timeout": "2s",
        "per_connection_buffer_limit_bytes": BUFFER_BYTES,
        "circuit_breakers": {"thresholds": [thresholds]},
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/"
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "common_http_protocol_options": options or {},
                "explicit_http_config": explicit,
            }
        },
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [endpoint]}],
        },
    }


def _listener(inputs: Inputs) -> Config:
    return {
        "name": "public",
        "address": envoy_address(inputs.listen),
        "per_connection_buffer_limit_bytes": BUFFER_BYTES,
        "filter_chains": [
            {
                "filters": [
                    {
                        "name": "envoy.filters.network.http_connection_manager",
                        "typed_config": _connection_manager(inputs),
                    }
                ]
            }
        ],
    }


def _connection_manager(inputs: Inputs) -> Config:
    return {
        "@type": "type.googleapis.com/envoy.extensions.filters.network"
        ".http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "public",
        "codec_type": "AUTO",
        "server_name": "mayfly",
        "server_header_transformation": "APPEND_IF_ABSENT",
        "use_remote_address": True,
        # A function gets the path that the client sent, byte for byte. Nothing is decided by
        # paths that a `..` could get around: a function's first segment names it.
        "normalize_path": False,
        "merge_slashes": False,
        "path_with_escaped_slashes_action": "KEEP_UNCHANGED",
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
        "generate_request_id": True,
        "preserve_external_request_id": True,
        "always_set_request_id_in_response": True,
        "request_id_extension": {
            "typed_config": {
                "@type": "type.googleapis.com/"
                "envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig",
                "pack_trace_reason": False,
                # Off, every request would be traced, and the sampling left to the tracer.
                "use_request_id_for_trace_sampling": True,
            }
        },
        "early_header_mutation_extensions": [_strip_trusted_headers()],
        "tracing": _tracing(),
        "local_reply_config": local_reply_config(),
        "route_config": {
            "name": "public",
            "ignore_port_in_host_matching": True,
            "virtual_hosts": [*_function_hosts(inputs), _platform_host(inputs)],
        },
        "http_filters": _http_filters(inputs),
    }


def _strip_trusted_headers() -> Config:
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
                *({"remove_on_match": {"key_matcher": {"prefix": prefix}}} for prefix in prefixes),
            ],
        },
    }


def _tracing() -> Config:
    return {
        "random_sampling": {"value": 100},
        "operation": "%REQ(:METHOD)% %PATH(NQ:ORIG)%",
        "provider": {
            "name": "envoy.tracers.opentelemetry",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig",
                "service_name": "gateway",
                "grpc_service": {"envoy_grpc": {"cluster_name": DEPLOYER}, "timeout": "2s"},
            },
        },
    }


def _http_filters(inputs: Inputs) -> list[Config]:
    """Return the filters; all but the router are off, and on for the API's routes alone."""

    def off(name: str, config: Config) -> Config:
        return {"name": name, "typed_config": config, "disabled": True}

    return [
        off(_TIME_LIMIT, _time_limit()),
        off(_CORS, {"@type": f"{_HTTP}.cors.v3.Cors"}),
        # Takes a request's body in full, up to its limit and not to a connection's.
        off(
            _BUFFER,
            {"@type": f"{_HTTP}.buffer.v3.Buffer", "max_request_bytes": inputs.api_body_bytes},
        ),
        off(
            _LUA,
            {
                "@type": f"{_HTTP}.lua.v3.Lua",
                "default_source_code": {"inline_string": inputs.api_script},
            },
        ),
        off(_GRPC_WEB, {"@type": f"{_HTTP}.grpc_web.v3.GrpcWeb"}),
        off(_TRANSCODER, transcoder(inputs, sse=False)),
        {
            "name": "envoy.filters.http.router",
            "typed_config": {
                "@type": f"{_HTTP}.router.v3.Router",
                # Functions get no headers of the proxy that they have no use for.
                "suppress_envoy_headers": True,
            },
        },
    ]


def _time_limit() -> Config:
    """Give the router a function's own time limit, which is in its cluster's metadata.

    Unlike a route's timeout, that of a try ends with the response's headers: it never cuts a
    stream, and it begins when the request's body is complete.
    """
    header = {
        "key": "x-envoy-upstream-rq-per-try-timeout-ms",
        "value": f"%METADATA(CLUSTER:{METADATA}:{TIMEOUT})%",
    }
    append = {"header": header, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
    return {
        "@type": f"{_HTTP}.header_mutation.v3.HeaderMutation",
        "mutations": {"request_mutations": [{"append": append}]},
    }


def transcoder(inputs: Inputs, *, sse: bool) -> Config:
    """Return the configuration that turns /v1 into gRPC; streams as SSE or as lines of JSON."""
    return {
        "@type": f"{_HTTP}.grpc_json_transcoder.v3.GrpcJsonTranscoder",
        "proto_descriptor": inputs.descriptors,
        "services": list(PUBLIC_SERVICES),
        "convert_grpc_status": True,
        "max_request_body_size": inputs.api_body_bytes,
        "max_response_body_size": inputs.api_body_bytes,
        # Enough for `=` and `:` within names and filters; a `%2F` in a name stays one segment.
        "url_unescape_spec": "ALL_CHARACTERS_EXCEPT_RESERVED",
        "query_param_unescape_plus": True,
        "print_options": {
            "always_print_primitive_fields": False,
            "stream_newline_delimited": True,
            "stream_sse_style_delimited": sse,
        },
        "request_validation_options": {
            "reject_unknown_method": True,
            "reject_unknown_query_parameters": True,
        },
    }


def _platform_host(inputs: Inputs) -> Config:
    return {
        "name": "platform",
        "domains": ["*"],
        "routes": [
            *_grpc_routes(inputs),
            *_api_routes(inputs),
            _path_route(inputs),
            *_page_routes(),
            {"name": "nothing", "match": {"prefix": "/"}, "direct_response": {"status": 404}},
        ],
    }


def _grpc_routes(inputs: Inputs) -> list[Config]:
    filters: Config = {_GRPC_WEB: _ON} | _cors(inputs)
    denied: list[Config] = [
        {
            "name": "internal-method",
            "match": {"path": method},
            "direct_response": {
                "status": 403,
                "body": {"inline_string": "this method is internal to the platform"},
            },
            "typed_per_filter_config": filters,
        }
        for method in INTERNAL_METHODS
    ]
    targets = {f"/{service}/": cluster for service, cluster in PUBLIC_SERVICES.items()}
    targets |= dict.fromkeys(ANSWERED_HERE, PUBLIC)
    allowed: list[Config] = [
        {
            "name": "grpc",
            "match": {"prefix": prefix, "headers": _GRPC_ONLY},
            "route": _unbounded({"cluster": cluster}),
            "typed_per_filter_config": filters,
        }
        for prefix, cluster in targets.items()
    ]
    # A transcoded request comes by here as well, and leaves its response's form in its route.
    own: list[Config] = [
        {
            "name": "grpc-method",
            "match": {"path": path, "headers": _GRPC_ONLY},
            "route": _unbounded({"cluster": PUBLIC_SERVICES[path.split("/")[1]]}),
            "metadata": metadata,
            "typed_per_filter_config": filters,
        }
        for path, metadata in inputs.method_metadata.items()
    ]
    preflight: list[Config] = [
        {
            "name": "preflight",
            "match": {
                "prefix": "/mayfly.v1.",
                "headers": [{"name": ":method", "string_match": {"exact": "OPTIONS"}}],
            },
            # What CORS does not answer has no page.
            "route": {"cluster": PAGES},
            "typed_per_filter_config": _cors(inputs),
        }
    ]
    return [*denied, *own, *allowed, *(preflight if inputs.allowed_origins else [])]


def _api_routes(inputs: Inputs) -> list[Config]:
    """Return the routes of /v1. The transcoder makes gRPC of it, which is then routed anew."""
    accepts_sse = {"name": "accept", "string_match": {"contains": "text/event-stream"}}
    return [
        {
            "name": name,
            "match": {"prefix": "/v1/", "headers": headers},
            "route": _unbounded({"cluster": DEPLOYER}),
            "typed_per_filter_config": {
                _TRANSCODER: transcoder(inputs, sse=sse),
                _BUFFER: _ON,
                _LUA: _ON,
            }
            | _cors(inputs),
        }
        for name, headers, sse in (("api-sse", [accepts_sse], True), ("api", [], False))
    ]


def _cors(inputs: Inputs) -> Config:
    if not inputs.allowed_origins:
        return {}
    anyone = "*" in inputs.allowed_origins
    origins: list[Config] = [{"exact": origin} for origin in inputs.allowed_origins]
    if anyone:
        origins = [{"safe_regex": {"regex": ".*"}}]
    return {
        _CORS: {
            "@type": f"{_HTTP}.cors.v3.CorsPolicy",
            "allow_origin_string_match": origins,
            "allow_methods": "GET, POST, PATCH, DELETE",
            "allow_headers": "content-type, x-grpc-web, x-user-agent, grpc-timeout, x-request-id, "
            "traceparent",
            "expose_headers": "grpc-status, grpc-message, grpc-status-details-bin, x-request-id",
            "max_age": "86400",
        }
    }


def _page_routes() -> list[Config]:
    return [
        {
            "name": "page",
            "match": {"path": path},
            "route": {"cluster": PAGES, "timeout": "15s"},
            "tracing": _sampled(0),
        }
        for path in ("/", "/openapi.json", "/healthz")
    ]


def _path_route(inputs: Inputs) -> Config:
    return {
        "name": "function-by-path",
        "match": {"prefix": "/f/"},
        "route": _function_action(_BY_PATH)
        | {
            "regex_rewrite": {
                "pattern": {"regex": "^/f/[^/]+/?(.*)$"},
                "substitution": r"/\1",
            }
        },
        "tracing": _sampled(inputs.function_trace_percent),
        "typed_per_filter_config": {_TIME_LIMIT: _ON},
        "request_headers_to_remove": _OF_ENVOY,
        # A cluster has the function's id for a name; a held request's prefix is set by `_hold`.
        "request_headers_to_add": [
            _header(ORIGINAL_PATH, "%REQ(:PATH)%"),
            _header("x-forwarded-prefix", "/f/%UPSTREAM_CLUSTER_RAW%"),
        ],
    }


def _function_hosts(inputs: Inputs) -> list[Config]:
    if not inputs.domains:
        return []
    return [
        {
            "name": "functions",
            "domains": [f"*.{domain}" for domain in inputs.domains],
            "routes": [
                {
                    "name": "function-by-host",
                    "match": {"prefix": "/"},
                    "route": _function_action(by_host(inputs.domains)),
                    "tracing": _sampled(inputs.function_trace_percent),
                    "typed_per_filter_config": {_TIME_LIMIT: _ON},
                    "request_headers_to_remove": _OF_ENVOY,
                    "request_headers_to_add": [_header(ORIGINAL_PATH, "%REQ(:PATH)%")],
                }
            ],
        }
    ]


def _function_action(script: str) -> Config:
    plugin = {
        "@type": "type.googleapis.com/envoy.extensions.router.cluster_specifiers.lua.v3.LuaConfig",
        "source_code": {"inline_string": script},
        "default_cluster": HOLD,
    }
    return _unbounded(
        {
            "inline_cluster_specifier_plugin": {
                "extension": {
                    "name": "envoy.router.cluster_specifier_plugin.lua",
                    "typed_config": plugin,
                }
            },
            "upgrade_configs": [{"upgrade_type": "websocket"}],
        }
    )


def _unbounded(action: Config) -> Config:
    """Let a stream stay open: what bounds a function's time is `_time_limit`."""
    return action | {"timeout": "0s", "idle_timeout": "0s"}


def _sampled(percent: float) -> Config:
    millionths = round(percent * 10_000)
    return {"random_sampling": {"numerator": millionths, "denominator": "MILLION"}}


def _header(key: str, value: str) -> Config:
    return {
        "header": {"key": key, "value": value},
        "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
    }


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


def by_host(domains: tuple[str, ...]) -> str:
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
