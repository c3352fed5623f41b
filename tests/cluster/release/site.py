"""A release under test: what it is, where its things are, and ways to look at them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from urllib.parse import urlsplit

from tests.cluster.conftest import Cluster
from tests.cluster.release.installed import RELEASE, Release
from tests.cluster.release.looking import INSTALLATION, Looker
from tests.cluster.release.parts import Parts
from tests.conformance.door import Door, Json


@dataclass(frozen=True)
class Site:
    """A release and the cluster that it is in."""

    cluster: Cluster
    release: Release

    @property
    def looker(self) -> Looker:
        """Looks at the cluster."""
        return Looker(self.cluster)

    @property
    def parts(self) -> Parts:
        """The services' pods."""
        return Parts(self.looker, self.release.namespace, RELEASE)

    @property
    def driver(self) -> str:
        """What functions run on: knative or deployment."""
        return self.release.driver

    @property
    def namespace(self) -> str:
        """Where the services are."""
        return self.release.namespace

    @property
    def functions(self) -> str:
        """Where functions are."""
        return self.release.functions

    @property
    def builds(self) -> str:
        """Where build pods are."""
        return self.release.builds

    @property
    def label(self) -> str:
        """The selector of everything that this release makes."""
        return f"{INSTALLATION}={self.release.installation}"

    @property
    def workload_kind(self) -> str:
        """What each function has one of."""
        return "services.serving.knative.dev" if self.driver == "knative" else "deployments.apps"

    @property
    def registry_address(self) -> str:
        """host:port of the registry."""
        return self.release.repository.partition("/")[0]

    @property
    def storage_address(self) -> str:
        """host:port of the S3 server."""
        return urlsplit(self.cluster.s3_endpoint).netloc

    @property
    def database_address(self) -> str:
        """host:port of the database."""
        return urlsplit(self.release.database_url).netloc.rpartition("@")[2]

    @property
    def api_server_address(self) -> str:
        """host:port of the API server, as packets have it."""
        kind = "endpointslices.discovery.k8s.io"
        (found,) = self.looker.list(kind, "default", "kubernetes.io/service-name=kubernetes")
        return f"{found['endpoints'][0]['addresses'][0]}:{found['ports'][0]['port']}"

    def workload(self, uid: str) -> str:
        """Return the name of the one object that runs a function."""
        found = self.looker.list(self.workload_kind, self.functions, f"mayfly.dev/uid={uid}")
        (name,) = [o["metadata"]["name"] for o in found]
        return name

    def pods_of(self, uid: str) -> list[str]:
        """Return the names of a function's pods."""
        return self.looker.names("pod", self.functions, f"mayfly.dev/uid={uid}")

    async def swept(self, door: Door, *, dry_run: bool) -> list[Json]:
        """Sweep, and return what was found.

        Raises `AssertionError` where not everybody could be asked.
        """
        findings: list[Json] = []
        summary: Json = {}
        async with door.http.stream(
            "POST",
            "/v1/janitor:sweep",
            json={"dryRun": dry_run},
            headers={"accept": "text/event-stream"},
        ) as response:
            assert response.status_code == 200, await response.aread()
            async for line in response.aiter_lines():
                text = line.removeprefix("data:").strip()
                if not text or text.startswith(":"):
                    continue
                message: Json = json.loads(text)
                if "finding" in message:
                    findings.append(message["finding"])
                summary = message.get("summary", summary)
        assert summary, "a sweep without a summary"
        assert not summary.get("unreachable"), summary
        return findings
