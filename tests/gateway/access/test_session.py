"""The console's session cookie and CSRF value."""

import pytest

from gateway.access.session import SESSION_TTL_S, is_csrf_valid, read_session, sign_session

NOW = 1_000_000.0


KEY = b"k" * 32


def test_a_signed_session_reads_back_until_it_expires() -> None:
    cookie, session = sign_session("abc123", KEY, now=NOW)
    assert read_session(cookie, KEY, now=NOW + SESSION_TTL_S - 1) == session
    assert session.key_id == "abc123"
    assert session.expires_at == 1_043_200
    assert read_session(cookie, KEY, now=NOW + SESSION_TTL_S) is None


@pytest.mark.parametrize("cookie", [None, "", ".", "..", "a.b.c", "abc123.9999999999.", "ünï.1.x", "x" * 10_000])
def test_what_was_never_signed_is_no_session(cookie: str | None) -> None:
    assert read_session(cookie, KEY, now=NOW) is None


def test_neither_key_id_nor_expiry_can_be_changed() -> None:
    cookie, _ = sign_session("abc123", KEY, now=NOW)
    key_id, expires, signature = cookie.split(".")
    assert read_session(f"abc124.{expires}.{signature}", KEY, now=NOW) is None
    assert read_session(f"{key_id}.{int(expires) + 1}.{signature}", KEY, now=NOW) is None


def test_a_session_of_another_gateway_is_refused() -> None:
    cookie, _ = sign_session("abc123", b"other", now=NOW)
    assert read_session(cookie, KEY, now=NOW) is None


def test_the_csrf_value_belongs_to_one_session_and_is_not_its_signature() -> None:
    cookie, session = sign_session("abc123", KEY, now=NOW)
    _, later = sign_session("abc123", KEY, now=NOW + 1)
    assert is_csrf_valid(session, session.csrf)
    assert not is_csrf_valid(session, later.csrf)
    assert not is_csrf_valid(session, cookie.rpartition(".")[2])
    assert not is_csrf_valid(session, None)
    assert not is_csrf_valid(session, "ü")


@pytest.mark.parametrize("key_id", ["", "a.b"])
def test_a_key_id_that_could_blur_the_cookie_is_refused(key_id: str) -> None:
    with pytest.raises(ValueError):
        sign_session(key_id, KEY, now=NOW)
