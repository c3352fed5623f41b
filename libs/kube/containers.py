"""What a kubelet says of containers that do not run yet."""

from __future__ import annotations

_REFUSED = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})
# A busy kubelet has not seen a Secret or ConfigMap yet, and tries again by itself.
_NOT_YET = "timed out waiting for the condition"


def cannot_be_made(reason: str, message: str) -> bool:
    """Whether a container that waits with this reason and message will not come by itself.

    https://github.com/kubernetes/kubernetes/blob/master/pkg/kubelet/kuberuntime/kuberuntime_container.go
    """
    return reason in _REFUSED and _NOT_YET not in message
