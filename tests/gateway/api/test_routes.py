"""Operators' routes ask who it is before they look at the body."""

import pytest
from conftest import Running


@pytest.mark.parametrize(
    "path", ["checkpoints", "rollouts", "rollouts:rollback", "rollouts/r:approve", "rollouts/r:abort"]
)
@pytest.mark.parametrize("body", [b"", b"not JSON", b"{}"])
async def test_who_asks_is_known_before_the_body_is_read(gateway: Running, path: str, body: bytes) -> None:
    url = f"{gateway.url}/operator/v1/{path}"
    async with gateway.http.post(url, data=body) as answer:
        assert answer.status == 401
    async with gateway.http.post(url, data=body, headers=gateway.auth) as answer:
        assert answer.status == 403


async def test_no_more_of_the_body_is_read_than_a_limit(gateway: Running) -> None:
    url = f"{gateway.url}/operator/v1/checkpoints"
    for size, status in ((60_000, 400), (70_000, 413)):
        async with gateway.http.post(url, json={"path": "x" * size}, headers=gateway.admin) as answer:
            assert answer.status == status
