"""Writes docs/settings.md and the names that every process knows: run `make docs` after changing a setting.

Made from the settings classes; a test compares them.
"""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, SecretStr
from pydantic_core import PydanticUndefined

from feedback.setting_names import PATH, Names, list_names, merge_names
from feedback.settings import SharedSettings
from gateway.settings import GatewaySettings
from prefloop.hosting.settings import EngineHostSettings
from prefloop.sync.settings import SyncSettings
from trainer.settings import TrainerSettings

MODELS = (SharedSettings, GatewaySettings, TrainerSettings, SyncSettings, EngineHostSettings)
HEAD = """# Settings

Made from the code by `make docs`. Put them into `prefloop.toml` (or the file that `PREFLOOP_CONFIG` names), or set the
environment variable, which wins. `preset = "demo"` (or `"demo-smollm2"`) replaces defaults by those for short worlds; what
you set yourself still wins. A name that no process has, a value out of range or values that cannot hold together end every
process that reads them, in one line that names the file or the variable and the nearest right name.
"""


def format_default(value: Any) -> str:
    if isinstance(value, BaseModel):
        return "(see below)"
    if isinstance(value, list) and value and isinstance(value[0], BaseModel):
        value = [row.model_dump(mode="json", exclude_none=True, exclude_unset=True) for row in value]
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if isinstance(value, Path):
        value = str(value)
    return f"`{json.dumps(value)}`"


def list_settings(model: type[BaseModel], path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], str, str]]:
    """Every setting below a model: its path, its default, its description."""
    rows = []
    for name, info in model.model_fields.items():
        default = info.get_default(call_default_factory=True, validated_data={})
        if isinstance(default, BaseModel):
            rows += list_settings(type(default), (*path, name))
        else:
            shown = "required" if default is PydanticUndefined else format_default(default)
            rows.append(((*path, name), shown, info.description or ""))
    return rows


def render_names() -> str:
    names: Names = {}
    for model in MODELS:
        names = merge_names(names, list_names(model))
    return json.dumps(names, indent=1) + "\n"


def render_settings() -> str:
    sections: dict[str, list[str]] = {}
    seen = set()
    for model in MODELS:
        for path, default, description in list_settings(model):
            if path in seen:
                continue
            seen.add(path)
            variable = "PREFLOOP_" + "__".join(path).upper()
            section = ".".join(path[:-1]) or "top level"
            sections.setdefault(section, []).append(f"| `{path[-1]}` | {default} | {description} | `{variable}` |")
    parts = [HEAD]
    for section, rows in sections.items():
        title = section if section == "top level" else f"[{section}]"
        parts.append(
            f"\n## {title}\n\n| setting | default | meaning | environment |\n|---|---|---|---|\n"
            + "\n".join(rows)
            + "\n"
        )
    return "".join(parts)


if __name__ == "__main__":
    Path(__file__).with_name("settings.md").write_text(render_settings())
    PATH.write_text(render_names())
