"""Every setting is documented: docs/settings.md is what the code says."""

import importlib.util
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"


def load_renderer():
    spec = importlib.util.spec_from_file_location("render_settings", DOCS / "render_settings.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_settings_page_is_what_the_code_says():
    assert (DOCS / "settings.md").read_text() == load_renderer().render_settings(), "run `make docs`"


def test_every_process_knows_every_setting_by_name():
    renderer = load_renderer()
    assert renderer.PATH.read_text() == renderer.render_names(), "run `make docs`"


def test_every_setting_has_a_description():
    renderer = load_renderer()
    from gateway.settings import GatewaySettings
    from trainer.settings import TrainerSettings

    bare = [
        path
        for model in (GatewaySettings, TrainerSettings)
        for path, _, text in renderer.list_settings(model)
        if not text
    ]
    assert bare == []
