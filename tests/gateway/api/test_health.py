"""When a gateway is ready."""

from types import SimpleNamespace

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
