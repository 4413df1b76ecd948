"""Writes docs/openapi.json, which GET /openapi.json shows: run `make docs` after changing a route. A test compares both."""

import json
import tempfile
from pathlib import Path

from starlette.testclient import TestClient

from gateway.app import create_app
from gateway.settings import GatewaySettings


def render_openapi() -> str:
    """The document as a running gateway gives it; its engine need not be there."""
    with tempfile.TemporaryDirectory() as folder:
        settings = GatewaySettings.model_validate(
            {"state_dir": Path(folder) / "state", "gateway": {"engines": ["http://127.0.0.1:9"]}}
        )
        with TestClient(create_app(settings)) as client:
            return json.dumps(client.get("/openapi.json").json(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("openapi.json").write_text(render_openapi())
