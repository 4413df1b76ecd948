"""Keys and their limits: stored, listed, changed by the operator's routes, and seen by the ring."""

import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from fastapi import FastAPI, Request
from starlette.responses import Response

from feedback.database import Writer, create_tables, metadata, open_database
from gateway.access import key_ring as keys_module
from gateway.access.auth import authenticate_header
from gateway.access.key_ring import KeyRing
from gateway.access.key_usage import UsageBook
from gateway.access.keys import (
    create_key,
    ensure_admin_key,
    key_id_of,
    key_limits_table,
    keys_table,
    revoke_key,
)
from gateway.access.limits.allowance import KeyLimits
from gateway.access.secrets import Secrets, load_secrets
from gateway.api.key_usage import add_usage_routes
from gateway.api.keys import add_key_change_routes, add_key_routes
from gateway.api.routes import OperatorRoutes
from gateway.errors import ApiError
from gateway.settings import GatewaySettings

KEYS = "/operator/v1/keys"
PRICED = GatewaySettings(gateway={"price_per_million_completion_tokens": 0.6})


@pytest.fixture
def database(tmp_path: Path) -> Iterator[sa.Engine]:
    engine = open_database(f"sqlite:{tmp_path / 'gateway.db'}")
    create_tables(engine, metadata)
    yield engine
    engine.dispose()


@pytest.fixture
def secrets(tmp_path: Path) -> Secrets:
    return load_secrets(tmp_path)


@pytest.fixture
async def client(database: sa.Engine, secrets: Secrets) -> AsyncIterator[httpx.AsyncClient]:
    """The keys' routes, asked with the admin key."""
    writer, ring = Writer(database), KeyRing(secrets.pepper)
    await writer.arun(lambda conn: ensure_admin_key(conn, secrets, time.time()))
    ring.refresh(database)
    usage = UsageBook(writer, PRICED.gateway)
    context: Any = SimpleNamespace(
        writer=writer, database=database, secrets=secrets, keys=ring, settings=PRICED, usage=usage
    )
    app = FastAPI()
    app.state.context = context
    routes = OperatorRoutes(context)
    add_key_routes(routes, context)
    add_key_change_routes(routes, context)
    add_usage_routes(routes, context)
    app.include_router(routes.router)

    @app.exception_handler(ApiError)
    async def refuse(_: Request, error: ApiError) -> Response:
        return Response(error.body(), error.status, media_type="application/json")

    headers = {"authorization": f"Bearer {secrets.admin_key}"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test", headers=headers) as client:
        client.ring, client.context = ring, context  # type: ignore[attr-defined]
        yield client
    writer.close()


def find_limits(client: httpx.AsyncClient, key: str) -> KeyLimits | None:
    identity = client.ring.check(key)  # type: ignore[attr-defined]
    assert identity is not None
    return identity.limits  # type: ignore[no-any-return]


async def test_a_key_is_made_with_limits_and_listed_with_them(client: httpx.AsyncClient) -> None:
    body = {"name": "shop", "limits": {"requests_per_minute": 60, "budget_per_day": 2.5}}
    created = await client.post(KEYS, json=body)
    assert created.status_code == 201
    limits = {
        "requests_per_minute": 60,
        "requests_per_day": None,
        "tokens_per_minute": None,
        "tokens_per_day": None,
        "budget_per_minute": None,
        "budget_per_day": 2.5,
    }
    assert created.json()["limits"] == limits
    assert find_limits(client, created.json()["key"]) == KeyLimits(requests_per_minute=60, budget_per_day=2.5)
    listed = {row["name"]: row["limits"] for row in (await client.get(KEYS)).json()["data"]}
    assert listed == {"admin": None, "shop": limits}


async def test_a_key_is_made_as_the_command_line_makes_it(client: httpx.AsyncClient) -> None:
    """An app's key that permits pairs: what `prefloop keys create shop` sends."""
    created = (await client.post(KEYS, json={"name": "shop"})).json()
    from_command = (await client.post(KEYS, json={"name": "shop", "scope": "app", "pairs": True, "limits": {}})).json()
    for body in (created, from_command):
        del body["id"], body["key"], body["created_at"]
    assert created == from_command


async def test_a_budget_without_prices_is_refused(client: httpx.AsyncClient) -> None:
    created = (await client.post(KEYS, json={"name": "shop"})).json()
    client.context.settings = GatewaySettings()  # type: ignore[attr-defined]
    for limits in ({"budget_per_day": 5}, {"budget_per_minute": 0.5}):
        made = await client.post(KEYS, json={"name": "other", "limits": limits})
        changed = await client.patch(f"{KEYS}/{created['id']}", json={"limits": limits})
        assert made.status_code == changed.status_code == 400
        assert "price_per_million" in made.json()["error"]["message"] == changed.json()["error"]["message"]
    lifted = await client.patch(f"{KEYS}/{created['id']}", json={"limits": {"budget_per_day": None}})
    assert lifted.status_code == 200


@pytest.mark.parametrize("body", [{"name": "shop"}, {"name": "shop", "limits": {}}, {"name": "shop", "limits": None}])
async def test_a_key_without_limits_has_none(client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    created = (await client.post(KEYS, json=body)).json()
    assert created["limits"] is None and find_limits(client, created["key"]) is None


async def test_limits_are_changed_one_by_one_and_lifted(client: httpx.AsyncClient) -> None:
    created = (await client.post(KEYS, json={"name": "shop", "limits": {"requests_per_minute": 60}})).json()
    url, key = f"{KEYS}/{created['id']}", created["key"]
    changed = await client.patch(url, json={"limits": {"tokens_per_day": 1000}})
    assert changed.status_code == 200 and changed.json()["limits"]["requests_per_minute"] == 60
    assert find_limits(client, key) == KeyLimits(requests_per_minute=60, tokens_per_day=1000)
    await client.patch(url, json={"limits": {"requests_per_minute": None, "tokens_per_day": 0}})
    assert find_limits(client, key) == KeyLimits(tokens_per_day=0)
    lifted = await client.patch(url, json={"limits": {"tokens_per_day": None}})
    assert lifted.json()["limits"] is None and find_limits(client, key) is None


@pytest.mark.parametrize(
    "limits",
    [{"requests_per_minute": -1}, {"requests_per_minute": 1.5}, {"requests_a_minute": 5}, {"budget_per_day": "5"},
     {"budget_per_day": 1e10}, {"tokens_per_day": 10**16}, 7],
)  # fmt: skip
async def test_limits_that_make_no_sense_are_refused(client: httpx.AsyncClient, limits: object) -> None:
    created = (await client.post(KEYS, json={"name": "shop"})).json()
    assert (await client.post(KEYS, json={"name": "other", "limits": limits})).status_code == 400
    refused = await client.patch(f"{KEYS}/{created['id']}", json={"limits": limits})
    assert refused.status_code == 400 and refused.json()["error"]["type"] == "invalid_request_error"


async def test_limits_are_the_administrators(client: httpx.AsyncClient) -> None:
    operator = (await client.post(KEYS, json={"name": "ops", "scope": "operator"})).json()
    headers = {"authorization": f"Bearer {operator['key']}"}
    change = {"limits": {"requests_per_minute": 1}}
    assert (await client.patch(f"{KEYS}/{operator['id']}", json=change, headers=headers)).status_code == 403
    assert (await client.patch(f"{KEYS}/nobody", json=change)).status_code == 404
    assert (await client.patch(f"{KEYS}/{operator['id']}", json={})).status_code == 400


def test_an_unchanged_key_keeps_its_identity_object(database: sa.Engine, secrets: Secrets) -> None:
    ring = KeyRing(secrets.pepper)
    with database.begin() as conn:
        limits = KeyLimits(requests_per_minute=5)
        key, row = create_key(
            conn, secrets.pepper, app="shop", scopes=frozenset({"app"}), pairs=True, now=1.0, limits=limits
        )
    ring.refresh(database)
    before = ring.check(key)
    ring.refresh(database)
    assert before is not None and ring.check(key) is before
    with database.begin() as conn:
        conn.execute(sa.update(key_limits_table).values(requests_per_minute=6))
    ring.refresh(database)
    assert ring.by_id(row.id) != before and key_id_of(key) == row.id


def test_a_database_from_before_limits_goes_on_working(tmp_path: Path, secrets: Secrets) -> None:
    database = open_database(f"sqlite:{tmp_path / 'old.db'}")
    keys_table.create(database)
    with database.begin() as conn:
        conn.execute(
            sa.insert(keys_table).values(
                id="old", digest="d", app="shop", scopes="app", pairs=True, created_at=1.0, revoked_at=None
            )
        )
    create_tables(database, metadata)
    ring = KeyRing(secrets.pepper)
    ring.refresh(database)
    identity = ring.by_id("old")
    assert identity is not None and identity.limits is None
    database.dispose()


def test_an_admin_key_that_was_revoked_stays_so_after_a_restart(
    database: sa.Engine, secrets: Secrets, caplog: pytest.LogCaptureFixture
) -> None:
    ring = KeyRing(secrets.pepper)
    with database.begin() as conn:
        ensure_admin_key(conn, secrets, 1.0)
        assert revoke_key(conn, key_id_of(secrets.admin_key), 2.0)
        ensure_admin_key(conn, secrets, 3.0)
    ring.refresh(database)
    assert ring.check(secrets.admin_key) is None
    assert "secrets/admin_key" in caplog.text
    other = replace(secrets, admin_key=f"pl_{key_id_of(secrets.admin_key)}_another")  # a new secret under the same id
    with database.begin() as conn:
        ensure_admin_key(conn, other, 4.0)
    ring.refresh(database)
    assert ring.check(other.admin_key) is not None and ring.check(secrets.admin_key) is None


async def test_the_admin_key_that_the_gateway_was_started_with_is_replaced_before_it_is_revoked(
    client: httpx.AsyncClient, database: sa.Engine, secrets: Secrets, tmp_path: Path
) -> None:
    refused = await client.delete(f"{KEYS}/{key_id_of(secrets.admin_key)}")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "current_admin_key")
    assert "secrets/admin_key" in refused.json()["error"]["message"]
    assert (await client.get(KEYS)).status_code == 200
    (tmp_path / "secrets" / "admin_key").unlink()  # as the message says
    renewed = load_secrets(tmp_path)
    with database.begin() as conn:
        ensure_admin_key(conn, renewed, 5.0)
    ring = client.ring  # type: ignore[attr-defined]
    ring.refresh(database)
    client.context.secrets = renewed  # type: ignore[attr-defined]
    client.headers["authorization"] = f"Bearer {renewed.admin_key}"
    assert (await client.delete(f"{KEYS}/{key_id_of(secrets.admin_key)}")).status_code == 200
    assert ring.check(secrets.admin_key) is None


async def test_no_key_may_speak_in_the_playgrounds_name(client: httpx.AsyncClient) -> None:
    refused = await client.post(KEYS, json={"name": " playground "})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "name")


@pytest.mark.parametrize(
    ("method", "path", "body", "param"),
    [
        ("DELETE", f"{KEYS}/a%00b", None, "key_id"),
        ("PATCH", f"{KEYS}/a%00b", {"limits": {}}, "key_id"),
        ("POST", KEYS, {"name": "x", "scope": "app\0"}, "body.scope"),
        ("POST", KEYS, {}, "name"),
        ("POST", KEYS, {"name": "x", "color": "red"}, "color"),
        ("POST", KEYS, {"name": "x", "limits": {"tokens": 1}}, "limits"),
        ("POST", KEYS, {"name": "x", "limits": {"tokens_per_day": "1"}}, "limits.tokens_per_day"),
    ],
)
async def test_what_cannot_be_stored_or_read_is_named(
    client: httpx.AsyncClient, method: str, path: str, body: Any, param: str
) -> None:
    refused = await client.request(method, path, json=body)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, param.removeprefix("body."))


def test_a_key_that_was_revoked_while_its_header_was_verified_is_not_remembered(
    database: sa.Engine, secrets: Secrets, monkeypatch: pytest.MonkeyPatch
) -> None:
    with database.begin() as conn:
        ensure_admin_key(conn, secrets, 1.0)
    ring = KeyRing(secrets.pepper)
    ring.refresh(database)
    header = f"Bearer {secrets.admin_key}".encode()
    digest = keys_module.digest_key

    def digest_late(key: str, pepper: bytes) -> str:
        """The key is revoked, and the ring refreshed, while the loop's thread verifies a header."""
        monkeypatch.setattr(keys_module, "digest_key", digest)
        with database.begin() as conn:
            revoke_key(conn, key_id_of(secrets.admin_key), 2.0)
        refreshing = threading.Thread(target=ring.refresh, args=(database,))
        refreshing.start()
        refreshing.join(5)
        return digest(key, pepper)

    monkeypatch.setattr(keys_module, "digest_key", digest_late)
    for _ in range(2):  # it may pass once, for it began before; never again
        try:
            authenticate_header(header, ring, "admin")
        except ApiError as error:
            assert error.status == 401
            break
    else:
        pytest.fail("a revoked key came back")


def test_a_refresh_that_began_before_a_key_was_revoked_does_not_bring_it_back(
    database: sa.Engine, secrets: Secrets
) -> None:
    with database.begin() as conn:
        ensure_admin_key(conn, secrets, 1.0)
    ring = KeyRing(secrets.pepper)
    has_read, may_end = threading.Event(), threading.Event()

    class Slow:
        """The database to a refresh that takes its time after it has read."""

        @contextmanager
        def connect(self) -> Iterator[sa.Connection]:
            with database.connect() as conn:
                yield conn
                has_read.set()
                may_end.wait(5)

    early = threading.Thread(target=ring.refresh, args=(Slow(),))
    early.start()
    assert has_read.wait(5)
    with database.begin() as conn:
        revoke_key(conn, key_id_of(secrets.admin_key), 2.0)
    late = threading.Thread(target=ring.refresh, args=(database,))
    late.start()
    late.join(0.2)
    may_end.set()
    early.join(5)
    late.join(5)
    assert ring.check(secrets.admin_key) is None


async def make(client: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    created = await client.post(KEYS, json={"name": "shop", **body})
    assert created.status_code == 201, created.text
    return dict(created.json())


def identify(client: httpx.AsyncClient, key: str) -> Any:
    return client.ring.identify(f"Bearer {key}".encode())  # type: ignore[attr-defined]


async def test_a_key_ends_at_its_time_also_where_it_was_just_used(client: httpx.AsyncClient) -> None:
    made = await make(client, expires_at=time.time() + 3600)
    assert identify(client, made["key"]).app == "shop"
    ring = client.ring  # type: ignore[attr-defined]
    ring._clock = lambda: made["expires_at"] - 0.001
    assert identify(client, made["key"]) is not None and ring.by_id(made["id"]) is not None
    ring._clock = lambda: made["expires_at"]
    with pytest.raises(ApiError) as raised:
        authenticate_header(f"Bearer {made['key']}".encode(), ring, "app")
    assert (raised.value.status, raised.value.code) == (401, "expired_api_key")
    assert raised.value.headers == {"www-authenticate": "Bearer"} and b'"authentication_error"' in raised.value.body()
    assert ring.check(made["key"]) is None and ring.by_id(made["id"]) is None


async def test_a_keys_end_is_moved_and_lifted(client: httpx.AsyncClient) -> None:
    made = await make(client, limits={"requests_per_day": 5})
    path, later = f"{KEYS}/{made['id']}", time.time() + 60
    changed = (await client.patch(path, json={"expires_at": later})).json()
    assert (changed["expires_at"], changed["limits"]["requests_per_day"]) == (later, 5)
    assert (await client.patch(path, json={"expires_at": None})).json()["expires_at"] is None
    for body in ({"expires_at": time.time() - 1}, {"expires_at": later * 1000}, {}):
        assert (await client.patch(path, json=body)).status_code == 400
    assert (await client.patch(f"{KEYS}/nobody", json={"expires_at": later})).status_code == 404
    assert (await client.post(KEYS, json={"name": "x", "expires_at": 1.0})).status_code == 400


async def test_a_rotated_key_keeps_its_id_app_and_limits_and_its_old_secret_for_a_while(
    client: httpx.AsyncClient,
) -> None:
    made = await make(client, limits={"requests_per_day": 5})
    before = identify(client, made["key"])
    rotated = (await client.post(f"{KEYS}/{made['id']}:rotate", json={"grace_s": 60})).json()
    assert rotated["id"] == made["id"] == key_id_of(rotated["key"]) and rotated["key"] != made["key"]
    assert identify(client, rotated["key"]) == identify(client, made["key"]) == before
    assert rotated["old_secret_until"] == pytest.approx(time.time() + 60, abs=10)
    [listed] = [row for row in (await client.get(KEYS)).json()["data"] if row["id"] == made["id"]]
    assert listed["old_secret_until"] == rotated["old_secret_until"] and "digest" not in listed
    client.ring._clock = lambda: rotated["old_secret_until"]  # type: ignore[attr-defined]
    with pytest.raises(ApiError, match="expired"):
        identify(client, made["key"])
    assert identify(client, rotated["key"]) == before


async def test_only_the_last_secret_lives_on_and_none_without_grace(client: httpx.AsyncClient) -> None:
    first = await make(client)
    path = f"{KEYS}/{first['id']}:rotate"
    second = (await client.post(path, json={})).json()
    third = (await client.post(path, json={})).json()
    assert identify(client, first["key"]) is None
    assert identify(client, second["key"]) is not None and identify(client, third["key"]) is not None
    fourth = (await client.post(path, json={"grace_s": 0})).json()
    assert identify(client, third["key"]) is None and fourth["old_secret_until"] is None
    assert identify(client, fourth["key"]) is not None


async def test_what_cannot_be_rotated_is_refused(client: httpx.AsyncClient, secrets: Secrets) -> None:
    made = await make(client)
    await client.delete(f"{KEYS}/{made['id']}")
    assert (await client.post(f"{KEYS}/{made['id']}:rotate", json={})).status_code == 409
    assert (await client.post(f"{KEYS}/nobody:rotate", json={})).status_code == 404
    own = await client.post(f"{KEYS}/{key_id_of(secrets.admin_key)}:rotate", json={})
    assert own.json()["error"]["code"] == "current_admin_key"
    assert (await client.post(f"{KEYS}/{made['id']}:rotate", json={"grace_s": -1})).status_code == 400


async def test_keys_of_one_app_speak_for_the_same_users(client: httpx.AsyncClient, secrets: Secrets) -> None:
    web, phone, other = (
        await make(client, name="web", app="shop"), await make(client, name="phone", app="shop"),
        await make(client, name="third"),
    )  # fmt: skip
    assert (phone["name"], phone["app"], other["app"]) == ("phone", "shop", "third")
    hashes = [secrets.hash_user(identify(client, each["key"]).app, "ann") for each in (web, phone, other)]
    assert hashes[0] == hashes[1] != hashes[2]
    assert (await client.post(KEYS, json={"name": "x", "app": "playground"})).status_code == 400


async def test_what_keys_used_is_shown_by_day_in_sum_and_beside_each_key(client: httpx.AsyncClient) -> None:
    shop, idle = await make(client), await make(client, name="idle")
    book = client.context.usage  # type: ignore[attr-defined]
    today = int(time.time()) // 86_400 * 86_400
    for at, prompt, completion in ((today - 1, 100, 10), (today, 200, 20), (today + 1, 300, 30)):
        book._clock = lambda at=at: at
        book.add(shop["id"], prompt, completion)
    book.add("playground", 1, 1)
    used = (await client.get(f"{KEYS}/{shop['id']}/usage")).json()
    assert (used["name"], used["app"], [day["tokens"] for day in used["days"]]) == ("shop", "shop", [110, 550])
    assert used["total"]["requests"] == 3 and used["total"]["spend"] == pytest.approx(60 * 0.6e-6)
    assert used["days"][0]["day"] < used["days"][1]["day"] and len(used["days"][1]["day"]) == 10
    assert len((await client.get(f"{KEYS}/{shop['id']}/usage?days=1")).json()["days"]) == 1
    assert (await client.get(f"{KEYS}/{idle['id']}/usage")).json()["days"] == []
    summary = (await client.get(f"{KEYS}/usage?days=2")).json()
    assert [(row["name"], row["total"]["tokens"]) for row in summary["data"]] == [("shop", 660), ("playground", 2)]
    assert summary["total"]["tokens"] == 662
    listed = {row["id"]: row["usage"]["today"] for row in (await client.get(KEYS)).json()["data"]}
    assert listed[shop["id"]]["tokens"] == 550 and listed[idle["id"]]["requests"] == 0
    assert (await client.get(f"{KEYS}/nobody/usage")).status_code == 404
    for days in ("0", "401", "many"):
        assert (await client.get(f"{KEYS}/usage?days={days}")).status_code == 400
