"""`helm test`, and what an end leaves. The fixture itself removes the release and looks again."""

from __future__ import annotations

from tests.cluster.release.installed import RELEASE, run
from tests.cluster.release.site import Site


def test_helm_test(site: Site) -> None:
    out = run("helm", "test", RELEASE, "-n", site.namespace, "--timeout", "180s")
    assert "Phase:          Succeeded" in out, out
    assert "test" not in "".join(site.looker.names("pod", site.namespace)), "its pod stays"


def test_nothing_is_left_of_functions(site: Site) -> None:
    """With every function ended: no object, image, context; the chart's own objects alone."""
    site.release.empty()
    chart = site.looker.everything(f"app.kubernetes.io/instance={RELEASE}")
    mine = [line for line in chart if line.partition("/")[0].startswith(site.namespace)]
    assert mine
    for namespace in (site.functions, site.builds):
        left = [
            line
            for line in site.looker.mentioning(f"{namespace}/")
            if line not in chart and "/kube-root-ca.crt" not in line
            if not line.endswith("/ServiceAccount/default")
        ]
        assert left == [], left
