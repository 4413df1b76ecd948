"""A person is the same however an app names it."""

import pytest

from gateway.access.secrets import Secrets
from gateway.serving.body import EngineRequest
from gateway.serving.routing import identify_user

SECRETS = Secrets(b"pepper" * 8, {}, "")


def hash_of(name: str) -> str:
    return SECRETS.hash_user("app", name)


@pytest.mark.parametrize(
    ("sent", "name"),
    [
        (b"ann", "ann"),
        (b"ann \t", "ann"),
        ("  Zo\u00eb".encode(), "Zo\u00eb"),
        ("Zo\u00eb".encode("latin-1"), "Zo\u00eb"),
        ("\u91d1\u5b50 ".encode(), "\u91d1\u5b50"),
    ],
)
def test_a_header_and_the_body_name_the_same_person(sent: bytes, name: str) -> None:
    headers = {b"x-prefloop-user": sent.decode("latin-1"), b"x-prefloop-conversation": sent.decode("latin-1")}
    by_header = identify_user(EngineRequest("m"), headers.get, "app", SECRETS)
    assert by_header.user == hash_of(name)
    plain = {b"x-prefloop-user": name.strip(), b"x-prefloop-conversation": name}
    assert by_header.conversation == identify_user(EngineRequest("m"), plain.get, "app", SECRETS).conversation
    for field in ("user", "safety_identifier"):
        request = EngineRequest("m", **{field: f" {name}\n"})  # type: ignore[arg-type]
        assert identify_user(request, {}.get, "app", SECRETS).user == hash_of(name)


def test_a_blank_header_names_nobody() -> None:
    request = EngineRequest("m", user="ann")
    assert identify_user(request, {b"x-prefloop-user": "  "}.get, "app", SECRETS).user == hash_of("ann")
    assert identify_user(EngineRequest("m", user="  "), {}.get, "app", SECRETS).user == ""
    assert identify_user(EngineRequest("m", user="ann", safety_identifier=" "), {}.get, "app", SECRETS).user == hash_of(
        "ann"
    )
