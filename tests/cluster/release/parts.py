"""The parts of a release as the cluster has them: pods of deployer, builder, janitor, gateway."""

from __future__ import annotations

from dataclasses import dataclass

from tests.cluster.release.looking import Looker, Object, wait_until

PARTS = ("builder", "deployer", "janitor", "gateway")
_READY_SECONDS = 90


@dataclass(frozen=True)
class Parts:
    """The pods of the release `name` in `namespace`."""

    looker: Looker
    namespace: str
    name: str

    def selector(self, part: str) -> str:
        """Return what finds a part's pods and its Deployment."""
        return f"app.kubernetes.io/instance={self.name},app.kubernetes.io/component={part}"

    def deployment(self, part: str) -> str:
        """Return the name of a part's Deployment."""
        (name,) = self.looker.names("deployment", self.namespace, self.selector(part))
        return name

    def pods(self, part: str) -> list[Object]:
        """Return the pods of a part that are not ending."""
        found = self.looker.list("pod", self.namespace, self.selector(part))
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def kill(self, part: str, *, all_of_them: bool, at_once: bool = False) -> None:
        """Delete one pod of a part, or all; `at_once` without time to end."""
        names = [pod["metadata"]["name"] for pod in self.pods(part)]
        assert names, f"there is no pod of the {part}"
        force = ["--grace-period=0", "--force"] if at_once else []
        chosen = names if all_of_them else names[:1]
        self.looker.kubectl("delete", "pod", "-n", self.namespace, "--wait=false", *force, *chosen)

    def wait_ready(self, *parts: str) -> None:
        """Wait until as many pods are ready as there should be, and none is ending."""
        for part in parts or PARTS:
            self.looker.kubectl(
                "rollout", "status", "deployment", self.deployment(part), "-n", self.namespace,
                f"--timeout={_READY_SECONDS}s",
            )  # fmt: skip

            def ended(part: str = part) -> bool:
                found = self.looker.list("pod", self.namespace, self.selector(part))
                return all("deletionTimestamp" not in pod["metadata"] for pod in found)

            wait_until(ended, _READY_SECONDS, f"no pod of the {part} is ending")

    def restart(self, *parts: str) -> None:
        """Roll parts out anew, and wait until that is over."""
        names = [f"deployment/{self.deployment(part)}" for part in parts]
        self.looker.kubectl("rollout", "restart", "-n", self.namespace, *names)
        self.wait_ready(*parts)

    def logs(self, part: str, lines: int = 40) -> str:
        """Return the last lines of all pods of a part."""
        return self.looker.kubectl(
            "logs", "-n", self.namespace, "-l", self.selector(part), "--all-containers",
            "--prefix", f"--tail={lines}", check=False,
        )  # fmt: skip

    def environment(self, part: str) -> dict[str, str]:
        """Return the plain variables of a part's container."""
        (found,) = self.looker.list("deployment", self.namespace, self.selector(part))
        entries = found["spec"]["template"]["spec"]["containers"][0].get("env", [])
        return {e["name"]: e["value"] for e in entries if "value" in e}

    def set_environment(self, part: str, **variables: str) -> None:
        """Set variables of a part, remove empty ones, and wait until its new pods are ready."""
        words = [f"{name}={value}" if value else f"{name}-" for name, value in variables.items()]
        self.looker.kubectl(
            "set", "env", f"deployment/{self.deployment(part)}", "-n", self.namespace, *words
        )
        self.wait_ready(part)
