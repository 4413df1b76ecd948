"""What the playground's chat box may ask, and how it is answered."""

import contextlib
import json
from pathlib import Path

import pytest
from conftest import Running, run_gateway, wait_until
from sqlalchemy import select

from feedback.choices import choices, load_comparison
from feedback.duels import load_duels
from gateway.api.playground import build_chat_body, has_playground
from gateway.engines.deployment import ServingView
from gateway.sections.serving import GatewaySection
from gateway.tables.observations import observations

URL = "/playground/chat"
QUESTION = {"messages": [{"role": "user", "content": "Hi"}]}


async def test_a_question_without_a_key_is_answered_as_a_stream(gateway: Running) -> None:
    headers = {"x-prefloop-compare": "always", "x-prefloop-user": "ann", "cookie": "x=y"}
    async with gateway.http.post(gateway.url + URL, json=QUESTION, headers=headers) as answer:
        assert (answer.status, answer.content_type) == (200, "text/event-stream")
        events = (await answer.text()).split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert "comparison" in json.loads(events[-3][6:])


async def test_pages_of_other_sites_may_not_ask(gateway: Running) -> None:
    async with gateway.http.post(gateway.url + URL, json=QUESTION, headers={"sec-fetch-site": "cross-site"}) as answer:
        assert answer.status == 403
    assert gateway.engine.requests == []


def read_log(gateway: Running) -> set[str]:
    """The keys of all events in the log."""
    settings = gateway.context.settings
    with contextlib.closing(settings.open_log()) as log:
        events = [log.read(settings.topic, partition, 0, 10, 0.0) for partition in log.partitions(settings.topic)]
    return {record.key.decode() for records in events for record in records}


async def test_what_is_asked_and_chosen_there_is_no_evidence_and_trains_nothing(gateway: Running) -> None:
    context = gateway.context
    stable = context.deployment.view.stable
    other = await gateway.publish(context.settings.state_dir / "other", 1)
    await wait_until(lambda: context.deployment.view.canary == other)
    view = context.deployment.view
    await gateway.serve(
        ServingView(view.generation + 1000, stable, other, 0.5, 1.0, view.salt, view.rollout, view.observed)
    )
    headers = {"x-prefloop-compare": "always", "x-prefloop-user": "ann", "x-prefloop-conversation": "c1"}
    async with gateway.http.post(gateway.url + URL, json=QUESTION, headers=headers) as answer:
        comparison = json.loads((await answer.text()).split("\n\n")[-3][6:])["comparison"]
    async with gateway.http.post(gateway.url + URL, json=QUESTION) as answer:
        await answer.read()
    with context.database.connect() as conn:
        shown = load_comparison(conn, comparison["id"])
    assert (shown.app, shown.user, shown.asked) == ("playground", "", "explore")
    for _ in range(2):
        assert (await gateway.choose(comparison, preferred="second"))[0] == 200
    assert (await gateway.choose(comparison, preferred="first"))[0] == 409
    app_answer = await gateway.ask({"x-prefloop-compare": "always", "x-prefloop-user": "ann"})
    assert (await gateway.choose(app_answer["comparison"]))[0] == 200
    ann = context.secrets.hash_user("tests", "ann")

    def list_observed() -> set[str]:
        with context.database.connect() as conn:
            return set(conn.execute(select(observations.c.user)).scalars())

    await wait_until(lambda: list_observed() == {ann})
    with context.database.connect() as conn:
        assert {duel.user for duel in load_duels(conn, [view.rollout or ""])} - {""} == {ann}
        assert len(conn.execute(select(choices.c.comparison_id)).all()) == 2
    await wait_until(lambda: read_log(gateway) == {app_answer["comparison"]["id"]})


async def test_a_setting_lets_the_playgrounds_choices_train(tmp_path: Path) -> None:
    async with run_gateway(tmp_path, playground_trains=True) as gateway:
        headers = {"x-prefloop-compare": "always"}
        async with gateway.http.post(gateway.url + URL, json=QUESTION, headers=headers) as answer:
            comparison = json.loads((await answer.text()).split("\n\n")[-3][6:])["comparison"]
        assert (await gateway.choose(comparison))[0] == 200
        await wait_until(lambda: read_log(gateway) == {comparison["id"]})


async def test_the_playground_answers_up_to_its_limit(tmp_path: Path) -> None:
    async with run_gateway(tmp_path, playground_requests_per_minute=2) as gateway:
        statuses = []
        for _ in range(4):
            async with gateway.http.post(gateway.url + URL, json=QUESTION) as answer:
                statuses.append(answer.status)
                await answer.read()
        assert statuses.count(429) >= 1 and statuses[:2] == [200, 200]
        assert (await gateway.ask())["choices"]


@pytest.mark.parametrize(
    ("host", "playground", "is_served"),
    [
        ("127.0.0.1", None, True),
        ("::1", None, True),
        ("0.0.0.0", None, False),
        ("192.0.2.7", None, False),
        ("0.0.0.0", True, True),
        ("127.0.0.1", False, False),
    ],
)
def test_beyond_this_machine_it_is_served_only_if_set(host: str, playground: bool | None, is_served: bool) -> None:
    assert has_playground(GatewaySection(host=host, playground=playground)) is is_served


async def test_what_a_proxy_on_this_machine_passes_on_is_answered_only_if_set(tmp_path: Path, gateway: Running) -> None:
    passed_on = {"x-forwarded-for": "203.0.113.9"}
    async with gateway.http.post(gateway.url + URL, json=QUESTION, headers=passed_on) as answer:
        assert answer.status == 403
    assert gateway.engine.requests == []
    async with (
        run_gateway(tmp_path / "open", playground=True) as opened,
        opened.http.post(opened.url + URL, json=QUESTION, headers=passed_on) as answer,
    ):
        assert answer.status == 200


async def test_the_playground_can_be_turned_off(tmp_path: Path) -> None:
    async with run_gateway(tmp_path, playground=False) as gateway:
        async with gateway.http.post(gateway.url + URL, json=QUESTION) as answer:
            assert answer.status == 404
        async with gateway.http.get(gateway.url + "/", allow_redirects=False) as page:
            assert (page.status, page.headers["location"]) == (307, "/console")


@pytest.mark.parametrize("raw", [b"{", b"[]", b'{"messages": []}', b'{"messages": 3}', b"\xff"])
async def test_a_question_must_be_a_conversation_in_json(gateway: Running, raw: bytes) -> None:
    for content_type, status in (("application/json", 400), ("text/plain", 415)):
        async with gateway.http.post(gateway.url + URL, data=raw, headers={"content-type": content_type}) as answer:
            assert answer.status == status
            assert (await answer.json())["error"]["message"]


def test_a_question_becomes_a_streamed_request_for_the_policy_and_nothing_else() -> None:
    messages = QUESTION["messages"]
    body = {**QUESTION, "model": "default", "stream": True}
    assert json.loads(build_chat_body(messages, "default", GatewaySection())) == body
    limited = GatewaySection(playground_temperature=0.5, playground_max_tokens=9)
    assert json.loads(build_chat_body(messages, "default", limited)) == {**body, "temperature": 0.5, "max_tokens": 9}


async def test_what_else_a_page_says_reaches_no_engine(gateway: Running) -> None:
    more = {**QUESTION, "model": "c-000001", "priority": 1, "n": 9}
    async with gateway.http.post(gateway.url + URL, json=more) as answer:
        await answer.read()
    assert not {"priority", "n"} & gateway.engine.requests[-1].keys()
    assert gateway.engine.requests[-1]["model"] == gateway.context.deployment.view.stable
