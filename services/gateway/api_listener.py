"""The API's own listener, on a unix socket behind the public port: /v1, gRPC, gRPC-Web, traces."""

from __future__ import annotations

from services.gateway.envoy_config import (
    BUILD_SERVICE,
    DEPLOYER,
    HTTP_FILTERS,
    ON,
    PAGES,
    PUBLIC,
    PUBLIC_SERVICES,
    Config,
    Inputs,
    listener,
    request_ids,
    router,
    same_path,
    unbounded,
)
from services.gateway.local_reply import api_replies

# The deployer's alone: a build is held by functions and by nobody else.
INTERNAL_METHODS = tuple(
    f"/{BUILD_SERVICE}/{method}"
    for method in ("CreateBuild", "HoldBuild", "ReleaseBuild", "FindLostImages")
)
ANSWERED_HERE = ("/grpc.health.v1.Health/", "/grpc.reflection.")

_TRANSCODER = "envoy.filters.http.grpc_json_transcoder"
_GRPC_WEB = "envoy.filters.http.grpc_web"
_CORS = "envoy.filters.http.cors"
_LUA = "envoy.filters.http.lua"
_BUFFER = "envoy.filters.http.buffer"
_GRPC_ONLY = [{"name": "content-type", "string_match": {"prefix": "application/grpc"}}]


def api_listener(inputs: Inputs) -> Config:
    """Return the listener of the API."""
    manager: Config = {
        "codec_type": "HTTP2",
        "server_header_transformation": "PASS_THROUGH",
        # The public listener in front of it has said who the client is.
        "use_remote_address": False,
        "skip_xff_append": True,
        "request_timeout": "0s",
        "stream_idle_timeout": "0s",
        "http2_protocol_options": {"max_concurrent_streams": 100_000},
        "tracing": _tracing(),
        "local_reply_config": api_replies(),
        "route_config": {
            "name": "api",
            "virtual_hosts": [
                {
                    "name": "api",
                    "domains": ["*"],
                    "routes": [*_grpc_routes(inputs), *_json_routes(inputs), _nothing()],
                }
            ],
        },
        "http_filters": _http_filters(inputs),
    }
    return listener("api", inputs.api, manager | same_path() | request_ids())


def _tracing() -> Config:
    """Trace every call; the deployer keeps the spans of functions' traces."""
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
    """Return the filters; all but the router are off, and on for the routes that need them."""

    def off(name: str, config: Config) -> Config:
        return {"name": name, "typed_config": config, "disabled": True}

    script = {"inline_string": inputs.api_script}
    return [
        off(_CORS, {"@type": f"{HTTP_FILTERS}.cors.v3.Cors"}),
        # Takes a request's body in full, up to its limit and not to a connection's.
        off(
            _BUFFER,
            {
                "@type": f"{HTTP_FILTERS}.buffer.v3.Buffer",
                "max_request_bytes": inputs.api_body_bytes,
            },
        ),
        off(_LUA, {"@type": f"{HTTP_FILTERS}.lua.v3.Lua", "default_source_code": script}),
        off(_GRPC_WEB, {"@type": f"{HTTP_FILTERS}.grpc_web.v3.GrpcWeb"}),
        off(_TRANSCODER, _transcoder(inputs, sse=False)),
        router(),
    ]


def _transcoder(inputs: Inputs, *, sse: bool) -> Config:
    """Return the configuration that turns /v1 into gRPC; streams as SSE or as lines of JSON."""
    return {
        "@type": f"{HTTP_FILTERS}.grpc_json_transcoder.v3.GrpcJsonTranscoder",
        "proto_descriptor": inputs.descriptors,
        "services": list(PUBLIC_SERVICES),
        "convert_grpc_status": True,
        "max_request_body_size": inputs.api_body_bytes,
        "max_response_body_size": inputs.api_body_bytes,
        # Enough for `=` and `:` within names and filters; a `%2F` in a name stays one segment.
        "url_unescape_spec": "ALL_CHARACTERS_EXCEPT_RESERVED",
        "query_param_unescape_plus": True,
        "print_options": {
            "stream_newline_delimited": True,
            "stream_sse_style_delimited": sse,
        },
        "request_validation_options": {
            "reject_unknown_method": True,
            "reject_unknown_query_parameters": True,
        },
    }


def _grpc_routes(inputs: Inputs) -> list[Config]:
    filters: Config = {_GRPC_WEB: ON} | _cors(inputs)
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
    # A transcoded request comes by here as well, and leaves its response's form in its route.
    own: list[Config] = [
        {
            "name": "grpc-method",
            "match": {"path": path, "headers": _GRPC_ONLY},
            "route": unbounded({"cluster": PUBLIC_SERVICES[path.split("/")[1]]}),
            "metadata": metadata,
            "typed_per_filter_config": filters,
        }
        for path, metadata in inputs.method_metadata.items()
    ]
    targets = {f"/{service}/": cluster for service, cluster in PUBLIC_SERVICES.items()}
    targets |= dict.fromkeys(ANSWERED_HERE, PUBLIC)
    allowed: list[Config] = [
        {
            "name": "grpc",
            "match": {"prefix": prefix, "headers": _GRPC_ONLY},
            "route": unbounded({"cluster": cluster}),
            "typed_per_filter_config": filters,
        }
        for prefix, cluster in targets.items()
    ]
    return [*denied, *own, *allowed, *_preflights(inputs)]


def _preflights(inputs: Inputs) -> list[Config]:
    if not inputs.allowed_origins:
        return []
    is_options = {"name": ":method", "string_match": {"exact": "OPTIONS"}}
    return [
        {
            "name": "preflight",
            "match": {"prefix": "/mayfly.v1.", "headers": [is_options]},
            # What CORS does not answer has no page.
            "route": {"cluster": PAGES},
            "typed_per_filter_config": _cors(inputs),
        }
    ]


def _json_routes(inputs: Inputs) -> list[Config]:
    """Return the routes of /v1. The transcoder makes gRPC of it, which is then routed anew."""
    accepts_sse = {"name": "accept", "string_match": {"contains": "text/event-stream"}}
    return [
        {
            "name": name,
            "match": {"prefix": "/v1/", "headers": headers},
            "route": unbounded({"cluster": DEPLOYER}),
            "typed_per_filter_config": {
                _TRANSCODER: _transcoder(inputs, sse=sse),
                _BUFFER: ON,
                _LUA: ON,
            }
            | _cors(inputs),
        }
        for name, headers, sse in (("json-sse", [accepts_sse], True), ("json", [], False))
    ]


def _nothing() -> Config:
    return {"name": "nothing", "match": {"prefix": "/"}, "direct_response": {"status": 404}}


def _cors(inputs: Inputs) -> Config:
    if not inputs.allowed_origins:
        return {}
    origins: list[Config] = [{"exact": origin} for origin in inputs.allowed_origins]
    if "*" in inputs.allowed_origins:
        origins = [{"safe_regex": {"regex": ".*"}}]
    return {
        _CORS: {
            "@type": f"{HTTP_FILTERS}.cors.v3.CorsPolicy",
            "allow_origin_string_match": origins,
            "allow_methods": "GET, POST, PATCH, DELETE",
            "allow_headers": "content-type, x-grpc-web, x-user-agent, grpc-timeout, x-request-id, "
            "traceparent",
            "expose_headers": "grpc-status, grpc-message, grpc-status-details-bin, x-request-id",
            "max_age": "86400",
        }
    }
