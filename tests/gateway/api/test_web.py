"""The pages' routes, without a gateway around them."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI, Request
from starlette.responses import Response
from starlette.testclient import TestClient

from gateway.access.keys import Identity
from gateway.api.web import build_web_router, read_examples
from gateway.api.web_files import CONSOLE_PAGES, build_console_pages, find_address, load_web_files
from gateway.errors import ApiError
from gateway.sections.serving import GatewaySection

OPERATOR = Identity("op1", "team", frozenset({"operator"}))
APP = Identity("app1", "shop", frozenset({"app"}))


class TwoKeys:
    """An operator's key and an app's key."""

    def check(self, key: str) -> Identity | None:
        return {"pl_op1_x": OPERATOR, "pl_app1_x": APP}.get(key)

    def by_id(self, key_id: str) -> Identity | None:
        return {"op1": OPERATOR}.get(key_id)


@pytest.fixture
def client(tmp_path: Path) -> TestClient:
    section = GatewaySection.model_validate({"playground": True, "trusted_proxies": ["10.0.0.0/8"]})
    settings = SimpleNamespace(base=str(tmp_path), policy="default", gateway=section)
    context: Any = SimpleNamespace(settings=settings, keys=TwoKeys(), secrets=SimpleNamespace(token_key=b"k"))
    app = FastAPI()

    @app.exception_handler(ApiError)
    async def show_error(_: Request, error: ApiError) -> Response:
        return Response(error.body(), error.status, error.headers, "application/json")

    app.include_router(build_web_router(context))
    return TestClient(app, client=("10.1.2.3", 5000))


@pytest.mark.parametrize("path", ["/", *map(find_address, CONSOLE_PAGES)])
def test_pages_come_with_a_policy_that_forbids_inline_code(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 200
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_pages_hold_no_inline_script_style_or_handler() -> None:
    files = load_web_files()
    for name, file in {**files, **{f"{path}.html": page for path, page in build_console_pages(files).items()}}.items():
        text = file.content.decode()
        if name.endswith(".html"):
            assert "<style" not in text and " style=" not in text and " onclick=" not in text
            assert text.count("<script") == text.count("<script src=") + text.count('<script type="module" src=')
        if name.endswith(".js"):
            assert not any(word in text for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "eval(")), name


def test_every_page_of_the_console_names_itself_in_the_navigation_and_brings_its_script(client: TestClient) -> None:
    for name in CONSOLE_PAGES:
        page = client.get(find_address(name)).text
        assert re.findall(r'<a href="(\S+)" aria-current="page">', page) == [find_address(name)]
        assert f'<script type="module" src="/web/console/{name}.js">' in page
        assert page.count("<h1") >= 1 and "$" not in page
    for name, file in load_web_files().items():
        for imported in (
            re.findall(r'^import .*"(\.\S+)"', file.content.decode(), re.MULTILINE) if name.endswith(".js") else ()
        ):
            assert client.get(str(Path("/web") / Path(name).parent / imported)).status_code == 200, (name, imported)


def test_only_the_files_of_the_pages_are_served(client: TestClient) -> None:
    assert client.get("/web/base.css").headers["content-type"].startswith("text/css")
    for path in (
        "/web/nothing.js",
        "/web/..%2fapp.py",
        "/web/console/frame.html",
        "/web/console/keys.html",
        "/console/nothing",
    ):
        assert client.get(path).status_code == 404


def test_an_unchanged_file_is_not_sent_again(client: TestClient) -> None:
    etag = client.get("/web/console/rollout.js").headers["etag"]
    assert client.get("/web/console/rollout.js", headers={"if-none-match": etag}).status_code == 304


def test_only_the_compare_element_may_be_loaded_by_other_sites(client: TestClient) -> None:
    source = client.get("/web/compare.js")
    for name in ("compare.js", *re.findall(r'from "\./(\S+)"', source.text)):
        headers = client.get(f"/web/{name}").headers
        assert headers["access-control-allow-origin"] == "*", name
        assert headers["cross-origin-resource-policy"] == "cross-origin", name
    for name in ("console/rollout.js", "base.css", "playground.js"):
        assert "access-control-allow-origin" not in client.get(f"/web/{name}").headers


def test_an_operator_signs_in_reads_the_csrf_value_and_signs_out(client: TestClient) -> None:
    assert client.get("/console/session").json() == {"object": "console.session", "signed_in": False}
    answer = client.post("/console/session", json={"key": "pl_op1_x"})
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie
    assert client.get("/console/session").json()["csrf"] == answer.json()["csrf"]
    assert (answer.json()["name"], answer.json()["is_admin"]) == ("team", False)
    assert client.get("/console/session").headers["cache-control"] == "no-store"
    client.delete("/console/session")
    assert client.get("/console/session").json()["signed_in"] is False


def test_a_rounds_report_is_for_whoever_is_signed_in(client: TestClient) -> None:
    assert client.get("/console/rounds/1/report").status_code == 401
    client.post("/console/session", json={"key": "pl_op1_x"})
    unset = client.get("/console/rounds/1/report")  # this gateway does not know where its trainer is
    assert (unset.status_code, unset.json()["error"]["message"][:25]) == (503, "It is not known where the")


@pytest.mark.parametrize(
    ("peer", "headers", "is_secure"),
    [
        ("10.1.2.3", {"x-forwarded-proto": "https", "x-forwarded-for": "203.0.113.9"}, True),
        ("10.1.2.3", {"x-forwarded-proto": "http"}, False),
        ("10.1.2.3", {}, False),
        ("192.0.2.1", {"x-forwarded-proto": "https", "x-forwarded-for": "203.0.113.9"}, False),  # anybody can say so
    ],
)
def test_the_cookie_is_secure_behind_a_proxy_that_speaks_tls_if_it_is_one_of_ours(
    client: TestClient, peer: str, headers: dict[str, str], is_secure: bool
) -> None:
    other = TestClient(client.app, client=(peer, 5000))
    answer = other.post("/console/session", json={"key": "pl_op1_x"}, headers=headers)
    assert answer.status_code == 200
    assert ("; secure" in answer.headers["set-cookie"].lower()) == is_secure


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"key": "pl_no_no"}', 401),
        (b'{"key": "pl_app1_x"}', 403),
        (b"key=pl_op1_x", 400),
        (b'{"key": "\xff"}', 400),
        (b"x" * 5000, 413),
    ],
)
def test_other_keys_and_malformed_sign_ins_are_refused(client: TestClient, body: bytes, status: int) -> None:
    answer = client.post("/console/session", content=body)
    assert answer.status_code == status
    assert answer.json()["error"]["message"]
    assert "set-cookie" not in answer.headers


def test_pages_of_other_sites_cannot_sign_in(client: TestClient) -> None:
    headers = {"sec-fetch-site": "cross-site"}
    assert client.post("/console/session", json={"key": "pl_op1_x"}, headers=headers).status_code == 403


def test_examples_come_from_the_base_model_if_it_has_some(client: TestClient, tmp_path: Path) -> None:
    assert client.get("/playground/examples").json()["data"] == []
    (tmp_path / "examples.json").write_text('["Why is the sky blue?"]')
    assert client.get("/playground/examples").json()["data"] == ["Why is the sky blue?"]
    (tmp_path / "examples.json").write_text('{"not": "a list"}')
    assert read_examples(tmp_path) == []
