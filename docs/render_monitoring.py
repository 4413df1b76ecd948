"""Writes k8s/components/monitoring/rules.yaml: docs/alerts.yml as the Prometheus operator reads it (`make docs`)."""

from pathlib import Path
from typing import Any

import yaml

DOCS = Path(__file__).parent
RULES = DOCS.parent / "k8s" / "components" / "monitoring" / "rules.yaml"
_HEAD = "# Made of docs/alerts.yml by `make docs`: change it there.\n"


def render_rules() -> str:
    """The alerts as a PrometheusRule."""
    rule: dict[str, Any] = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "prefloop"},
        "spec": yaml.safe_load((DOCS / "alerts.yml").read_text()),
    }
    return _HEAD + yaml.safe_dump(rule, sort_keys=False, width=140)


if __name__ == "__main__":
    RULES.write_text(render_rules())
