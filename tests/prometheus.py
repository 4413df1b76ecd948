"""Prometheus' programs for tests. Skips with its reason where there are none; in CI (environment CI=true) that is a failure."""

from prefloop.servers.prometheus import MissingPrometheus, Programs, find_programs
from tests.postgres import miss


def require_programs() -> Programs:
    """Prometheus, promtool and Alertmanager of this machine."""
    try:
        return find_programs()
    except MissingPrometheus as error:
        miss(str(error))
    raise AssertionError  # never reached


def find_promtool() -> str:
    """The program that checks rules and runs their unit tests."""
    return require_programs().promtool
