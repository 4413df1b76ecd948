from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, Field, ValidationError

from feedback.settings import SharedSettings


class Section(BaseModel):
    rate: float = Field(0.1)
    cap: int = Field(5)


class Settings(SharedSettings):
    section: Section = Field(default_factory=Section)

    @classmethod
    def preset_values(cls, preset: str) -> dict[str, Any]:
        return {"section": {"rate": 1.0, "cap": 3}} if preset == "demo" else {}


@pytest.fixture(autouse=True)
def empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PREFLOOP_CONFIG", raising=False)
    return tmp_path


def test_defaults_need_no_file() -> None:
    settings = SharedSettings()
    assert settings.log == "sqlite:state/log.db"
    assert settings.base == "state/seed"


def test_given_values_win_over_what_follows_from_the_state_directory() -> None:
    settings = SharedSettings(state_dir=Path("/srv"), log_url="sqlite:/x.db", base_model="org/model")
    assert (settings.log, settings.base) == ("sqlite:/x.db", "org/model")
    assert SharedSettings(state_dir=Path("/srv")).log == "sqlite:/srv/log.db"


def test_environment_wins_over_the_file_and_the_file_over_defaults(
    empty_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (empty_directory / "prefloop.toml").write_text('policy = "file"\ntopic = "file"\n[section]\nrate = 0.5\n[other]\n')
    monkeypatch.setenv("PREFLOOP_TOPIC", "environment")
    monkeypatch.setenv("PREFLOOP_SECTION__CAP", "9")
    settings = Settings()
    assert (settings.policy, settings.topic) == ("file", "environment")
    assert settings.section == Section(rate=0.5, cap=9)


def test_file_can_lie_elsewhere(empty_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (empty_directory / "mine.toml").write_text('policy = "mine"\n')
    monkeypatch.setenv("PREFLOOP_CONFIG", str(empty_directory / "mine.toml"))
    assert SharedSettings().policy == "mine"


@pytest.mark.parametrize("by", ["argument", "environment", "file"])
def test_preset_replaces_defaults_only(by: str, empty_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (empty_directory / "prefloop.toml").write_text(
        ('preset = "demo"\n' if by == "file" else "") + "[section]\nrate = 0.5\n"
    )
    if by == "environment":
        monkeypatch.setenv("PREFLOOP_PRESET", "demo")
    settings = Settings(preset="demo") if by == "argument" else Settings()
    assert settings.section == Section(rate=0.5, cap=3)


def test_unknown_preset_is_refused() -> None:
    with pytest.raises(ValidationError):
        SharedSettings(preset="turbo")  # type: ignore[arg-type]
