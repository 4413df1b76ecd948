"""When a gateway is ready, and who may read its metrics."""

from types import SimpleNamespace

from conftest import Running

from gateway.api.health import find_unready_reason
from gateway.engines.deployment import Deployment, ServingView


def test_ready_means_that_an_engine_which_does_not_hang_has_proven_the_stable_checkpoint() -> None:
    deployment = Deployment(["http://a:1", "http://b:1"])
    context = SimpleNamespace(deployment=deployment)
    first, second = deployment.engines.values()
    assert find_unready_reason(context) == "no stable checkpoint"  # type: ignore[arg-type]
    deployment.apply(ServingView(1, "c"))
    first.up, first.proven = True, frozenset({"c"})
    assert find_unready_reason(context) is None  # type: ignore[arg-type]
    first.mark_hung(0.0)
    assert find_unready_reason(context) == "no engine holds the stable checkpoint"  # type: ignore[arg-type]
    second.proven = frozenset({"c"})
    assert find_unready_reason(context) is not None  # type: ignore[arg-type]
    second.up = True
    assert find_unready_reason(context) is None  # type: ignore[arg-type]


async def test_metrics_are_for_this_machine_and_for_operators(gateway: Running) -> None:
    url, passed_on = f"{gateway.url}/metrics", {"x-forwarded-for": "203.0.113.9"}
    async with gateway.http.get(url) as answer:
        assert answer.status == 200 and "prefloop_checkpoint_info" in await answer.text()
    operator = {"authorization": f"Bearer {await gateway.make_key('operator')}"}
    for headers, status in (({}, 401), (gateway.auth, 403), (operator, 200), (gateway.admin, 200)):
        async with gateway.http.get(url, headers=passed_on | headers) as answer:
            assert answer.status == status
            assert ("c-000000" in await answer.text()) == (status == 200)
    for path in ("/livez", "/readyz"):
        async with gateway.http.get(gateway.url + path, headers=passed_on) as answer:
            assert answer.status == 200
