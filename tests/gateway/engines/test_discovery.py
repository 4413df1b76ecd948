"""What lookups say becomes engines that may be asked, and what they do not say changes nothing."""

from prometheus_client.core import Metric

from gateway.engines.deployment import Deployment
from gateway.engines.discovery import Discovery
from gateway.engines.engine import EngineState
from gateway.engines.resolver import Found
from gateway.sections.serving import GatewaySection

NAME = "dns+http://engine:8000"


class Answers:
    """DNS by hand: what the next lookup of a name finds."""

    def __init__(self) -> None:
        self.found: dict[str, Found] = {}

    def set(self, *four: str, six: tuple[str, ...] | None = (), name: str = "engine") -> None:
        self.found[name] = Found({"A": four, "AAAA": six}, "" if six is not None else "AAAA: SERVFAIL")

    async def look_up(self, name: str) -> Found:
        return self.found[name]


def make(*engines: str) -> tuple[Answers, Deployment, Discovery]:
    section = GatewaySection(engines=list(engines))
    answers, deployment = Answers(), Deployment(section.fixed_engines, is_open=bool(section.engine_names))
    return answers, deployment, Discovery(section, deployment, answers)


def urls(deployment: Deployment) -> list[str]:
    return [state.url for state in deployment.states]


async def test_every_address_is_an_engine_and_one_that_goes_is_let_go() -> None:
    answers, deployment, discovery = make(NAME)
    assert urls(deployment) == [] and not deployment.is_single
    answers.set("10.0.0.1", "10.0.0.2", six=("fd00::1",))
    await discovery.look_up(NAME)
    first, second, third = deployment.states
    assert urls(deployment) == ["http://10.0.0.1:8000", "http://10.0.0.2:8000", "http://[fd00::1]:8000"]
    assert {state.source for state in deployment.states} == {NAME} and first.checkpoint is None
    answers.set("10.0.0.2", "10.0.0.3", six=("fd00::1",))
    await discovery.look_up(NAME)
    assert first.is_withdrawn and deployment.states[:2] == (second, third)
    assert urls(deployment)[2] == "http://10.0.0.3:8000"


async def test_an_engine_that_is_withdrawn_ends_what_it_answers_and_comes_back_as_one_that_has_proven_nothing() -> None:
    answers, deployment, discovery = make(NAME)
    answers.set("10.0.0.1", "10.0.0.2")
    await discovery.look_up(NAME)
    state = deployment.states[0]
    state.up, state.proven = True, frozenset({"c"})
    deployment.begin("c", state)
    answers.set("10.0.0.2")
    await discovery.look_up(NAME)
    assert state in deployment.watched and deployment.forget_withdrawn() == [] and deployment.in_flight("c") == 1
    answers.set("10.0.0.1", "10.0.0.2")
    await discovery.look_up(NAME)
    again = deployment.engines["http://10.0.0.1:8000"]
    assert again is not state and again.proven == frozenset() and not again.up
    deployment.end("c", state)
    assert deployment.forget_withdrawn() == [] and set(deployment.watched) == set(deployment.states)


async def test_a_lookup_that_fails_or_finds_nothing_keeps_every_engine_and_is_counted() -> None:
    answers, deployment, discovery = make(NAME)
    answers.set("10.0.0.1")
    await discovery.look_up(NAME)
    [state] = deployment.states
    answers.set()
    await discovery.look_up(NAME)
    answers.found["engine"] = Found({"A": None, "AAAA": None}, "timed out")
    await discovery.look_up(NAME)
    answers.found["engine"] = Found({"A": None, "AAAA": ()}, "timed out")  # half an answer that says nothing
    await discovery.look_up(NAME)
    assert deployment.states == (state,) and not state.is_withdrawn
    assert discovery.num_lookups == {(NAME, "found"): 1, (NAME, "empty"): 1, (NAME, "failed"): 2}


async def test_half_an_answer_lets_nobody_of_the_other_half_go() -> None:
    answers, deployment, discovery = make(NAME)
    answers.set("10.0.0.1", "10.0.0.2", six=("fd00::1",))
    await discovery.look_up(NAME)
    answers.set("10.0.0.2", six=None)
    await discovery.look_up(NAME)
    assert urls(deployment) == ["http://10.0.0.2:8000", "http://[fd00::1]:8000"]


async def test_names_and_listed_engines_stand_side_by_side_and_no_engine_is_there_twice() -> None:
    other = "dns+http://other:8000"
    answers, deployment, discovery = make("http://10.0.0.1:8000", NAME, other)
    answers.set("10.0.0.1", "10.0.0.2")
    answers.set("10.0.0.2", "10.0.0.3", name="other")
    await discovery.look_up(NAME)
    await discovery.look_up(other)
    sources = {state.url[-6:-5]: state.source for state in deployment.states}
    assert sources == {"1": "settings", "2": NAME, "3": other} and len(deployment.states) == 3
    answers.set("10.0.0.9")  # the address that both named is the other's now
    await discovery.look_up(NAME)
    assert "http://10.0.0.2:8000" in urls(deployment) and "http://10.0.0.1:8000" in urls(deployment)


async def test_an_engine_of_a_whole_model_is_not_taken_for_one_of_adapters() -> None:
    answers, deployment, discovery = make(NAME)
    whole = deployment.add_engine("http://10.0.0.1:8000", "whole")
    answers.set("10.0.0.1", "10.0.0.2")
    await discovery.look_up(NAME)
    assert urls(deployment) == ["http://10.0.0.1:8000", "http://10.0.0.2:8000"] and deployment.states[0] is whole


def sample(metrics: dict[str, Metric], name: str, **labels: str) -> float:
    [value] = [s.value for s in metrics[name].samples if s.labels == labels and not s.name.endswith("_created")]
    return value


async def test_metrics_say_how_many_engines_each_source_has_and_how_lookups_end() -> None:
    from feedback.relay import RelayState
    from gateway.telemetry.state_metrics import StateCollector

    class Alone:
        fence = None

    answers, deployment, discovery = make("http://10.0.0.7:8000", NAME)
    collector = StateCollector(deployment, Alone(), discovery, RelayState)  # type: ignore[arg-type]
    answers.set("10.0.0.1", "10.0.0.2")
    await discovery.look_up(NAME)
    answers.set()
    await discovery.look_up(NAME)
    metrics = {family.name: family for family in collector.collect()}
    assert sample(metrics, "prefloop_engines", source="settings") == 1
    assert sample(metrics, "prefloop_engines", source=NAME) == 2
    assert sample(metrics, "prefloop_engine_lookups", source=NAME, outcome="empty") == 1
    assert sample(metrics, "prefloop_engine_lookups", source=NAME, outcome="failed") == 0


def test_an_engine_that_was_found_says_so() -> None:
    assert EngineState("http://10.0.0.1:8000").source == "settings"
