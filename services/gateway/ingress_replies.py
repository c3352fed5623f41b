"""What an ingress inside the cluster answers in a function's place, told in the gateway's words.

On Knative a proxy in the function's pod answers 502 with Go's words where the function broke off
("EOF"). A function's own 502 looks like that only if it comes by Go's http.Error: it then keeps its
status and loses its text. https://github.com/knative/pkg/blob/main/network/handlers/error_handler.go
"""

from __future__ import annotations

from services.gateway import http1
from services.gateway.envoy_config import HTTP_FILTERS, Config

_MATCHER = "type.googleapis.com/envoy.type.matcher.v3"
_POLICY = (
    "type.googleapis.com/envoy.extensions.http.custom_response.local_response_policy.v3"
    ".LocalResponsePolicy"
)
# The last: every such ingress is an Envoy (Kourier, Contour, Istio), and this one's own name for
# itself is another.
_BROKEN_OFF = {
    ":status": {"exact": "502"},
    "content-type": {"exact": "text/plain; charset=utf-8"},
    "x-content-type-options": {"exact": "nosniff"},
    "server": {"suffix": "envoy"},
}


# What every Envoy puts into an answer that it has from behind it, unless it is told not to.
_FROM_BEHIND = "x-envoy-upstream-service-time"


def knows_no_way(response: bytes) -> bool:
    """Whether this beginning of an answer is an ingress's own, which has no way to the function."""
    names = http1.header_names(response)
    refused = http1.status_code(response) in (404, 503)
    return refused and "server" in names and _FROM_BEHIND not in names


def ingress_replies() -> Config:
    """Return the filter that answers in place of an ingress; `local_reply` has the words."""
    matched = {"and_matcher": {"predicate": [_header(*each) for each in _BROKEN_OFF.items()]}}
    policy = {"@type": _POLICY, "status_code": 502}
    matcher = {
        "predicate": matched,
        "on_match": {"action": {"name": "broke-off", "typed_config": policy}},
    }
    return {
        "name": "envoy.filters.http.custom_response",
        "typed_config": {
            "@type": f"{HTTP_FILTERS}.custom_response.v3.CustomResponse",
            "custom_response_matcher": {"matcher_list": {"matchers": [matcher]}},
        },
    }


def _header(name: str, value: Config) -> Config:
    kind = f"{_MATCHER}.HttpResponseHeaderMatchInput"
    given = {"name": name, "typed_config": {"@type": kind, "header_name": name}}
    return {"single_predicate": {"input": given, "value_match": value}}
