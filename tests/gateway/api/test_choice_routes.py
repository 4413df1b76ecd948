"""Choices, keys and models over HTTP: right statuses, OpenAI's shape, never a 500 for bad input."""

from pathlib import Path
from typing import Any

import pytest
import yarl
from conftest import QUESTION, Running, run_gateway
from sqlalchemy import select
from sqlalchemy.event import listen

from feedback.choices import choices
from feedback.errors import DatabaseError
from gateway.access.tokens import ComparisonToken, sign_token

PAIR = {"x-prefloop-compare": "always", "x-prefloop-user": "ann"}


async def test_a_choice_is_stored_when_it_is_acknowledged(gateway: Running) -> None:
    comparison = (await gateway.ask(PAIR))["comparison"]
    status, body = await gateway.choose(comparison, preferred="second", strength=0.5)
    assert (status, body) == (200, {"id": comparison["id"], "object": "comparison.choice", "preferred": "second"})
    with gateway.context.database.connect() as conn:
        assert conn.execute(select(choices.c.preferred, choices.c.strength)).all() == [("second", 0.5)]
    assert gateway.context.deployment.counters.choices == 1


async def test_the_same_choice_is_replayed_and_another_conflicts(gateway: Running) -> None:
    comparison = (await gateway.ask(PAIR))["comparison"]
    assert (await gateway.choose(comparison))[0] == 200
    assert (await gateway.choose(comparison))[0] == 200
    status, body = await gateway.choose(comparison, preferred="second")
    assert (status, body["error"]["code"]) == (409, "conflicting_choice")
    assert gateway.context.deployment.counters.choices == 1


async def test_a_token_is_good_for_its_own_comparison_only(gateway: Running) -> None:
    one = (await gateway.ask(PAIR))["comparison"]
    other = (await gateway.ask(PAIR))["comparison"]
    assert (await gateway.choose(one, token=other["token"]))[0] == 401
    assert (await gateway.choose(one, token=one["token"][:-2] + "AA"))[0] == 401
    assert (await gateway.choose(one, token="nonsense"))[0] == 401
    assert (await gateway.choose({**one, "id": "cmp_unknown"}))[0] == 401


async def test_a_token_of_ours_for_a_comparison_that_was_lost_gets_404(gateway: Running) -> None:
    claims = ComparisonToken("cmp_lost", "tests", "", ("a", "b"), ("c", "d"), 2_000_000_000)
    status, body = await gateway.choose({"id": "cmp_lost", "token": sign_token(claims, gateway.context.secrets)})
    assert (status, body["error"]["code"]) == (404, "unknown_comparison")


async def test_a_bad_token_never_reaches_the_database(gateway: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    comparison = (await gateway.ask(PAIR))["comparison"]
    statements: list[str] = []
    listen(gateway.context.database, "before_cursor_execute", lambda *given: statements.append(given[2]))

    async def fail(*_: Any) -> None:
        raise DatabaseError("must not be asked")

    monkeypatch.setattr(gateway.context.writer, "arun_grouped", fail)
    for comparison_id in (comparison["id"], "cmp_unknown", "cmp_%00"):
        status, body = await gateway.choose({"id": comparison_id, "token": comparison["token"][:-2] + "AA"})
        assert (status, body["error"]["code"]) == (401, "invalid_api_key")
    assert not [statement for statement in statements if "comparisons" in statement]


async def test_an_expired_comparison_is_gone(tmp_path: Path) -> None:
    async with run_gateway(tmp_path, comparison_ttl_s=1e-6) as gateway:
        comparison = (await gateway.ask(PAIR))["comparison"]
        status, body = await gateway.choose(comparison)
        assert (status, body["error"]["code"]) == (410, "expired_comparison")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"preferred": "first"}',
        b'{"preferred": "third", "token": "x"}',
        b'{"preferred": "first", "token": 7}',
        b'{"preferred": "first", "token": "x", "strength": 1.5}',
        b'{"preferred": "first", "token": "x", "strength": 1e999}',
        b'{"preferred": "first", "token": "x", "harmful": "yes"}',
        b'\xff{"preferred": "first"}',
    ],
)
async def test_bad_choices_get_400(gateway: Running, body: bytes) -> None:
    async with gateway.http.post(f"{gateway.url}/v1/comparisons/cmp_x/choice", data=body) as answer:
        assert answer.status == 400
        assert set((await answer.json())["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"preferred": "first"}, "token"),
        ({"token": "x"}, "preferred"),
        ({"preferred": 1, "token": "x"}, "preferred"),
        ([], None),
    ],
)
async def test_the_field_at_fault_is_named_also_if_it_is_missing(
    gateway: Running, body: Any, param: str | None
) -> None:
    async with gateway.http.post(f"{gateway.url}/v1/comparisons/cmp_x/choice", json=body) as answer:
        assert (answer.status, (await answer.json())["error"]["param"]) == (400, param)


async def test_any_site_may_choose_and_no_other_route_allows_it(gateway: Running) -> None:
    url = f"{gateway.url}/v1/comparisons/cmp_x/choice"
    async with gateway.http.options(url, headers={"origin": "https://app.example"}) as answer:
        assert answer.status == 204
        assert answer.headers["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in answer.headers
    async with gateway.http.post(url, json={"preferred": "first", "token": "x"}) as answer:
        assert (answer.status, answer.headers["access-control-allow-origin"]) == (401, "*")
    async with gateway.http.get(f"{gateway.url}/v1/models", headers=gateway.auth) as answer:
        assert "access-control-allow-origin" not in answer.headers


async def test_a_database_that_fails_gets_503_and_answers_go_on(
    gateway: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    comparison = (await gateway.ask(PAIR))["comparison"]

    async def fail(fn: Any, item: Any) -> None:
        raise DatabaseError("disk full")

    monkeypatch.setattr(gateway.context.writer, "arun_grouped", fail)
    async with gateway.http.post(
        f"{gateway.url}/v1/comparisons/{comparison['id']}/choice",
        json={"preferred": "first", "token": comparison["token"]},
    ) as answer:
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert (await gateway.ask())["choices"]


async def test_choices_are_read_as_other_requests_are(gateway: Running) -> None:
    comparison = (await gateway.ask(PAIR))["comparison"]
    body = {"preferred": "tie", "token": comparison["token"]}
    spelled = f"{gateway.url}/v1/comparisons/{comparison['id'].replace('_', '%5F')}/choice?from=widget"
    async with gateway.http.post(
        yarl.URL(spelled, encoded=True), json=body, headers={"x-request-id": "mine-1"}
    ) as answer:
        assert (answer.status, answer.headers["x-request-id"]) == (200, "mine-1")
        assert answer.headers["access-control-allow-origin"] == "*"
    url = f"{gateway.url}/v1/comparisons/{comparison['id']}/choice"
    async with gateway.http.post(url, data=b" " * 16_385) as answer:
        assert (answer.status, answer.headers["access-control-allow-origin"]) == (413, "*")
    for method in ("GET", "PUT", "DELETE"):
        async with gateway.http.request(method, url) as answer:
            assert (answer.status, answer.headers["allow"]) == (405, "POST, OPTIONS")
            assert set((await answer.json())["error"]) == {"message", "type", "param", "code"}
    async with gateway.http.post(url + "/more", json=body) as answer:
        assert answer.status == 404


async def test_whether_a_browser_chose_is_stored(gateway: Running) -> None:
    for origin, channel in ((None, "api"), ("https://app.example", "browser")):
        comparison = (await gateway.ask(PAIR))["comparison"]
        async with gateway.http.post(
            f"{gateway.url}/v1/comparisons/{comparison['id']}/choice",
            json={"preferred": "first", "token": comparison["token"]},
            headers={"origin": origin} if origin else {},
        ) as answer:
            assert answer.status == 200
        with gateway.context.database.connect() as conn:
            query = select(choices.c.channel).where(choices.c.comparison_id == comparison["id"])
            assert conn.execute(query).scalar_one() == channel


async def test_a_skip_quiets_auto_asking_for_a_while(gateway: Running) -> None:
    auto = {"x-prefloop-compare": "auto", "x-prefloop-user": "ann"}
    comparison = (await gateway.ask(auto))["comparison"]
    assert (await gateway.choose(comparison, preferred="skip"))[0] == 200
    assert "comparison" not in await gateway.ask(auto)
    assert "comparison" in await gateway.ask({**auto, "x-prefloop-user": "bob"})


BAD_CHATS: list[tuple[bytes, int, str | None]] = [
    (b"", 400, None),
    (b"{", 400, None),
    (b"[]", 400, None),
    (b"null", 400, None),
    (b"\xff\xfe", 400, None),
    (b"{}", 400, "model"),
    (b'{"model": 7, "messages": [{}]}', 400, "model"),
    (b'{"model": "default", "messages": [{}], "priority": 0}', 400, "priority"),
    (b'{"model": "default", "messages": [{}], "priorit\\u0079": 1}', 400, "priority"),
    (b'{"model": "default", "messages": [{}], "model": "default"}', 400, "model"),
    (b'{"mod\\u0065l": "default", "messages": [{}]}', 400, "model"),
    (b'{"model": "default", "mod\\u0065l": "default", "messages": [{}]}', 400, "model"),
    (b'{"model": "gpt-9", "messages": [{}]}', 404, "model"),
    (b'{"model": "base", "messages": [{}]}', 404, "model"),
    (
        b'{"model": "default", "messages": [{"content": [{"image_url": {"url": "HTTP://x/a.png"}}]}]}',
        400,
        "messages",
    ),
    (b"[" * 100_000, 400, None),
    (b'{"model": "default", "messages": [{}], "x": ' + b"[" * 100_000, 400, None),
]


@pytest.mark.parametrize(("body", "status", "param"), BAD_CHATS)
async def test_bad_chat_requests_are_refused_in_openais_shape(
    gateway: Running, body: bytes, status: int, param: str | None
) -> None:
    async with gateway.http.post(f"{gateway.url}/v1/chat/completions", data=body, headers=gateway.auth) as answer:
        error = (await answer.json())["error"]
        assert (answer.status, error["param"]) == (status, param), error
        assert set(error) == {"message", "type", "param", "code"}
    assert not gateway.engine.requests


@pytest.mark.parametrize("key", [None, "", "pl_x_y", "Bearer", "pl_\u00e4_x"])
async def test_a_wrong_key_gets_401(gateway: Running, key: str | None) -> None:
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    for path in ("/v1/chat/completions", "/operator/v1/keys"):
        async with gateway.http.post(gateway.url + path, json=QUESTION, headers=headers) as answer:
            assert answer.status == 401
            assert (await answer.json())["error"]["code"] == "invalid_api_key"


async def test_apps_cannot_operate_and_operators_cannot_make_keys(gateway: Running) -> None:
    operator = {"authorization": f"Bearer {await gateway.make_key('operator')}"}
    chooser = {"authorization": f"Bearer {await gateway.make_key('chooser')}"}
    url = f"{gateway.url}/operator/v1/keys"
    async with gateway.http.get(url, headers=gateway.auth) as answer:
        assert answer.status == 403
    async with gateway.http.get(url, headers=operator) as answer:
        assert [row["scope"] for row in (await answer.json())["data"]] == ["admin", "app", "operator", "chooser"]
    async with gateway.http.post(url, json={"name": "x", "scope": "admin"}, headers=operator) as answer:
        assert answer.status == 403
    async with gateway.http.post(f"{gateway.url}/v1/chat/completions", json=QUESTION, headers=chooser) as answer:
        assert answer.status == 403


async def test_a_revoked_key_stops_working(gateway: Running) -> None:
    await gateway.ask()
    url = f"{gateway.url}/operator/v1/keys/{gateway.key.split('_')[1]}"
    async with gateway.http.delete(url, headers=gateway.admin) as answer:
        assert answer.status == 200
    async with gateway.http.get(f"{gateway.url}/v1/models", headers=gateway.auth) as answer:
        assert answer.status == 401
    async with gateway.http.post(f"{gateway.url}/v1/chat/completions", json=QUESTION, headers=gateway.auth) as answer:
        assert answer.status == 401
    async with gateway.http.delete(url + "0", headers=gateway.admin) as answer:
        assert answer.status == 404


@pytest.mark.parametrize(
    "body", [b"", b"{}", b'{"name": ""}', b'{"name": "x", "scope": "root"}', b'{"name": 1}', b'{"name": "a\\u0000b"}']
)
async def test_bad_key_requests_get_400(gateway: Running, body: bytes) -> None:
    async with gateway.http.post(f"{gateway.url}/operator/v1/keys", data=body, headers=gateway.admin) as answer:
        assert answer.status == 400


async def test_apps_see_one_model_and_operators_the_checkpoints(gateway: Running) -> None:
    models = await gateway.client().models.list()
    assert [model.id for model in models.data] == ["default"]
    all_models = await gateway.client(gateway.app.secrets.admin_key).models.list()
    assert [model.id for model in all_models.data] == ["default", gateway.context.deployment.view.stable]
    assert (await gateway.client().models.retrieve("default")).id == "default"


async def test_unknown_addresses_and_methods_have_openais_shape(gateway: Running) -> None:
    for method, path, status in (
        ("GET", "/v1/nothing", 404),
        ("GET", "/v1/chat/completions", 405),
        ("PUT", "/livez", 405),
    ):
        async with gateway.http.request(method, gateway.url + path) as answer:
            assert answer.status == status
            assert set((await answer.json())["error"]) == {"message", "type", "param", "code"}


async def test_a_body_beyond_the_limit_gets_413(tmp_path: Path) -> None:
    async with (
        run_gateway(tmp_path, max_body_bytes=1000) as gateway,
        gateway.http.post(f"{gateway.url}/v1/chat/completions", data=b" " * 1001, headers=gateway.auth) as answer,
    ):
        assert answer.status == 413
