"""An S3 server for tests: the one that PREFLOOP_TEST_S3 names (a URL of a prefix to write below), or one started here.

Skips with its reason where there is none; in CI (environment CI=true) that is a failure.
"""

import contextlib
import os
import uuid
from collections.abc import Iterator

import pytest

from prefloop.servers.s3 import S3Failed, S3Server, check_programs, run_s3
from tests.postgres import miss

BUCKET = "tests"


@contextlib.contextmanager
def run_server() -> Iterator[S3Server]:
    """A server of the test's own, which it may kill, with the SDK's environment that reaches it."""
    try:
        import s3fs  # noqa: F401
    except ImportError:
        miss("s3fs is not installed")
    if missing := check_programs():
        miss(missing)
    stack = contextlib.ExitStack()
    try:
        server = stack.enter_context(run_s3())
    except S3Failed as error:
        miss(str(error))
    with stack, pytest.MonkeyPatch.context() as patch:
        server.make_bucket(BUCKET)
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server


@contextlib.contextmanager
def find_s3() -> Iterator[str]:
    """The URL of a place in which tests may write."""
    if given := os.environ.get("PREFLOOP_TEST_S3"):
        yield given.rstrip("/")
        return
    with run_server():
        yield f"s3://{BUCKET}"


def name_store(url: str) -> str:
    """The URL of a store that no other test uses."""
    return f"{url}/{uuid.uuid4().hex[:12]}"
