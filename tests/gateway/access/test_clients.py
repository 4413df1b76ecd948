"""Where a request comes from, seen through proxies that are trusted and such as are not."""

from ipaddress import ip_network

import pytest

from gateway.access.clients import Client, find_client

TRUSTED = [ip_network("10.0.0.0/8"), ip_network("127.0.0.1/32"), ip_network("fd00::/8")]


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.8.9.1", "::1"])
def test_a_program_on_this_machine_is_local_without_a_proxy_between(peer: str) -> None:
    assert find_client(peer, "http", {"host": "127.0.0.1:8800"}, []) == Client(peer, False)
    assert find_client(peer, "http", {}, []).is_local


@pytest.mark.parametrize(
    "header", ["x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip", "forwarded", "via"]
)
def test_what_a_proxy_on_this_machine_passes_on_is_not_local(header: str) -> None:
    for value in ("127.0.0.1", "for=127.0.0.1", ""):
        assert find_client("127.0.0.1", "http", {header: value}, []) == Client("", False)
        assert not find_client("127.0.0.1", "http", {header: value}, TRUSTED).is_local


@pytest.mark.parametrize(
    ("peer", "forwarded_for", "address"),
    [
        ("10.0.0.1", "203.0.113.9", "203.0.113.9"),
        ("10.0.0.1", "127.0.0.1, 203.0.113.9", "203.0.113.9"),  # what the client itself wrote does not count
        ("10.0.0.1", "203.0.113.9, 10.0.0.7", "203.0.113.9"),  # two proxies of ours
        ("fd00::1", "2001:db8::2", "2001:db8::2"),
        ("10.0.0.1", "10.0.0.7", ""),  # a proxy that says nothing of its client
        ("10.0.0.1", "", ""),
        ("10.0.0.1", "::1", ""),
        ("203.0.113.1", "127.0.0.1", ""),  # no proxy of ours
        (None, "127.0.0.1", ""),
    ],
)
def test_the_nearest_address_that_no_proxy_of_ours_has_is_the_clients(
    peer: str | None, forwarded_for: str, address: str
) -> None:
    client = find_client(peer, "http", {"x-forwarded-for": forwarded_for}, TRUSTED)
    assert (client.address, client.is_local) == (address, False)


def test_the_scheme_is_the_trusted_proxys_word_or_the_connections_own() -> None:
    said = {"x-forwarded-proto": "HTTPS, http", "x-forwarded-for": "203.0.113.9"}
    assert find_client("10.0.0.1", "http", said, TRUSTED).is_https
    assert not find_client("203.0.113.1", "http", said, TRUSTED).is_https
    assert find_client("203.0.113.1", "https", {}, TRUSTED).is_https


def test_nobody_is_known_behind_a_socket_without_an_address() -> None:
    assert find_client(None, "http", {}, TRUSTED) == Client("", False)
