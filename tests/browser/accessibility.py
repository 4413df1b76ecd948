"""axe-core over a page, as a test sees it."""

from functools import cache
from pathlib import Path
from typing import Any

import axe_playwright_python
from playwright.sync_api import Page

SEVERE = ("serious", "critical")


@cache
def _read_axe() -> str:
    return (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text()


# Colours on their way are nobody's: transitions end first, in open shadow roots too.
_SETTLE = """async () => {
  await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  const roots = [document, ...[...document.querySelectorAll("*")].map((one) => one.shadowRoot).filter(Boolean)];
  const moving = roots.flatMap((root) => root.getAnimations());
  const ending = moving.filter((one) => one.effect.getComputedTiming().iterations !== Infinity);
  await Promise.allSettled(ending.map((one) => one.finished));
}"""


def list_violations(page: Page) -> list[str]:
    """Serious and critical ones, each with the elements at fault. Evaluated, not added as a script: the page's policy stays."""
    page.evaluate(_SETTLE)
    page.evaluate(_read_axe())
    found: list[dict[str, Any]] = page.evaluate(
        "axe.run(document, {resultTypes: ['violations'], iframes: false}).then((found) => found.violations)"
    )
    return [
        f"{rule['impact']}: {rule['help']}: {node['html'][:200]} {node.get('failureSummary', '')[:300]}"
        for rule in found
        if rule["impact"] in SEVERE
        for node in rule["nodes"]
    ]
