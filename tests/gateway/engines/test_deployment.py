"""Views, in-flight counts, and which engine is asked."""

import pytest

from gateway.engines.deployment import Deployment, ServingView
from gateway.engines.engine import EngineState
from gateway.errors import EngineUnavailable

URLS = ["http://a:1", "http://b:1", "http://c:1"]


def make_deployment(**proven: set[str]) -> tuple[Deployment, dict[str, EngineState]]:
    """Three engines that are up; by their hosts, what they have proven."""
    deployment = Deployment(URLS)
    engines = {state.url[7]: state for state in deployment.engines.values()}
    for host, state in engines.items():
        state.up, state.proven = True, frozenset(proven.get(host, set()))
    return deployment, engines


def test_only_engines_that_have_proven_the_checkpoint_are_asked() -> None:
    deployment, engines = make_deployment(a={"old"}, b={"old", "new"}, c={"old"})
    assert {deployment.pick_engine("new", f"conversation {i}").url for i in range(20)} == {engines["b"].url}
    assert {deployment.pick_engine("old", f"conversation {i}").url for i in range(50)} == set(URLS)


def test_an_engine_that_is_down_or_broken_is_not_asked_while_another_holds_the_checkpoint() -> None:
    deployment, engines = make_deployment(a={"new"}, b={"new"}, c={"new"})
    engines["a"].up = False
    engines["b"].breaker.trip(0.0)
    engines["c"].num_in_flight = 50
    assert deployment.pick_engine("new") is engines["c"]


def test_where_no_usable_engine_holds_the_checkpoint_one_that_answers_is_asked_all_the_same() -> None:
    deployment, engines = make_deployment(a={"new"})
    engines["a"].up = engines["b"].up = False
    assert deployment.pick_engine("new") is engines["c"]
    engines["c"].up = False
    assert deployment.pick_engine("new", "conversation") is engines["a"]


def test_the_only_engine_is_asked_whatever_state_it_is_in() -> None:
    deployment = Deployment(URLS[:1])
    assert deployment.pick_engine("new").url == URLS[0]


def test_requests_are_counted_by_checkpoint_and_by_engine() -> None:
    deployment, engines = make_deployment()
    deployment.hold("old")
    deployment.begin("old", engines["a"])
    deployment.begin("new", engines["a"])
    assert deployment.all_in_flight() == {"old": 2, "new": 1}
    assert engines["a"].num_in_flight == 2
    deployment.end("new", engines["a"])
    deployment.end("old", engines["a"])
    assert (deployment.in_flight("old"), deployment.in_flight("new"), engines["a"].num_in_flight) == (1, 0, 0)
    deployment.release("old")
    assert deployment.all_in_flight() == {}


def test_a_view_of_an_equal_or_lower_generation_is_ignored() -> None:
    deployment = Deployment(URLS)
    assert deployment.apply(ServingView(2, "old", canary="new", weight=0.5))
    assert not deployment.apply(ServingView(2, "old"))
    assert deployment.view.canary == "new"


def test_falling_back_serves_stable_alone_until_the_same_view_comes_again() -> None:
    deployment = Deployment(URLS)
    view = ServingView(2, "old", canary="new", weight=0.5, rollout="r-1")
    deployment.apply(view)
    assert deployment.fall_back() and not deployment.fall_back()
    assert (deployment.view.stable, deployment.view.canary, deployment.view.rollout) == ("old", None, None)
    assert deployment.apply(view) and deployment.view is view


@pytest.mark.parametrize("conversation", ["", "conversation"])
def test_picking_costs_about_a_microsecond(conversation: str) -> None:
    """A bound wide enough for a busy machine: it is meant to catch a lock or a log line, not a slow day."""
    import timeit

    deployment, _ = make_deployment(a={"new"}, b={"new"}, c={"new"})
    num = 20_000
    seconds = min(timeit.repeat(lambda: deployment.pick_engine("new", conversation), number=num, repeat=5))
    assert seconds / num < 20e-6


def test_a_whole_model_is_asked_only_where_it_is_held_and_adapters_only_elsewhere() -> None:
    deployment = Deployment(URLS[:1])
    assert deployment.is_single
    adapters = deployment.states[0]
    adapters.up, adapters.proven = True, frozenset({"adapter"})
    whole = deployment.add_engine("http://w:1", "whole")
    for _ in range(2):  # not up yet, then proven
        assert deployment.pick_engine("whole") is whole and deployment.pick_engine("adapter") is adapters
        whole.up, whole.proven = True, frozenset({"whole"})
    adapters.up = False
    assert deployment.pick_engine("adapter") is adapters and deployment.pick_engine("other") is adapters


def test_an_engine_that_is_withdrawn_is_never_asked_again_and_known_until_its_last_request_has_ended() -> None:
    deployment = Deployment([])
    first = deployment.add_engine("http://w:1", "whole")
    first.up, first.proven = True, frozenset({"whole"})
    second = deployment.add_engine("http://w:2", "whole")
    deployment.begin("whole", first)
    deployment.withdraw_engine(first)
    assert deployment.pick_engine("whole") is second and first.proven == frozenset()
    assert deployment.forget_withdrawn() == [] and "http://w:1" in deployment.engines
    deployment.end("whole", first)
    assert deployment.forget_withdrawn() == ["http://w:1"] and deployment.engines == {"http://w:2": second}
    deployment.withdraw_engine(second)
    with pytest.raises(EngineUnavailable):
        deployment.pick_engine("whole")


def test_an_engine_that_is_withdrawn_again_is_known_until_the_requests_of_its_first_registration_have_ended() -> None:
    deployment = Deployment([])
    first = deployment.add_engine("http://w:1", "whole")
    deployment.begin("whole", first)
    deployment.withdraw_engine(first)
    for checkpoint in ("whole", "other"):
        deployment.withdraw_engine(deployment.add_engine("http://w:1", checkpoint))
        assert deployment.forget_withdrawn() == [] and "http://w:1" in deployment.engines
    deployment.end("whole", first)
    assert deployment.forget_withdrawn() == ["http://w:1"] and deployment.engines == {}
    again = deployment.add_engine("http://w:1", "whole")
    assert deployment.forget_withdrawn() == [] and deployment.states == (again,)
