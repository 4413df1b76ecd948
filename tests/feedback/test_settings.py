from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, Field

from feedback.errors import SettingsError
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
    (empty_directory / "prefloop.toml").write_text(
        'policy = "file"\ntopic = "file"\n[section]\nrate = 0.5\n[trainer]\n'
    )
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
    with pytest.raises(SettingsError):
        SharedSettings(preset="turbo")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a = = b", "Invalid value (at line 1, column 5)"),
        ("[gatewy]\nport = 1", "unknown section [gatewy]: did you mean [gateway]?"),
        ('polcy = "mine"', "unknown setting polcy: did you mean policy?"),
        ("[section]\nraet = 1", "unknown setting section.raet: did you mean section.rate?"),
        ("[trainer.dpo]\nbetta = 1", "unknown setting trainer.dpo.betta: did you mean trainer.dpo.beta?"),
        ("[gateway]\nmin_users = 1", "unknown setting gateway.min_users: did you mean rollout.min_users?"),
        ("[[rollout.steps]]\nwieght = 1", "unknown setting rollout.steps.wieght: did you mean rollout.steps.weight?"),
        ("rollout = 3", "rollout must be a section"),
        ('[section]\nrate = "fast"', "section.rate: Input should be a valid number"),
        ('log_url = "ftp://user:secret@host"', "log_url: the URL must begin with sqlite: or kafka://"),
    ],
)
def test_what_the_file_says_wrong_is_refused_in_one_line_that_names_it(
    text: str, problem: str, empty_directory: Path
) -> None:
    (empty_directory / "prefloop.toml").write_text(text)
    with pytest.raises(SettingsError) as refused:
        Settings()
    message = str(refused.value)
    assert message.startswith(f"prefloop.toml: {problem}")
    assert "\n" not in message and "secret" not in message


def test_a_file_that_was_named_must_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFLOOP_CONFIG", "mine.toml")
    with pytest.raises(SettingsError, match=r"PREFLOOP_CONFIG names no file: mine\.toml"):
        SharedSettings()
    monkeypatch.setenv("PREFLOOP_CONFIG", str(tmp_path))
    with pytest.raises(SettingsError, match="Is a directory"):
        SharedSettings()
    monkeypatch.setenv("PREFLOOP_CONFIG", "")
    assert SharedSettings().policy == "default"


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("PREFLOOP_GATEWAY__PROT", "1", "PREFLOOP_GATEWAY__PROT is no setting: did you mean PREFLOOP_GATEWAY__PORT?"),
        ("PREFLOOP_GATEWAY_PORT", "1", "PREFLOOP_GATEWAY_PORT is no setting: did you mean PREFLOOP_GATEWAY__PORT?"),
        ("PREFLOOP_STATEDIR", "x", "PREFLOOP_STATEDIR is no setting: did you mean PREFLOOP_STATE_DIR?"),
        (
            "PREFLOOP_TRAINER",
            '{"sede": 1}',
            "PREFLOOP_TRAINER: unknown setting trainer.sede: did you mean trainer.seed?",
        ),
        ("PREFLOOP_SECTION__RATE", "fast", "PREFLOOP_SECTION__RATE: section.rate: Input should be a valid number"),
        ("PREFLOOP_SECTION", "[", "PREFLOOP_SECTION: a section's value must be JSON"),
    ],
)
def test_a_variable_that_is_wrong_is_refused_by_name(
    name: str, value: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as refused:
        Settings()
    assert str(refused.value).startswith(problem)


def test_variables_that_are_no_settings_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """What commands read, and what Kubernetes adds for services called `prefloop` and `prefloop-gateway`."""
    others = {
        "PREFLOOP_KEY": "k", "PREFLOOP_GATEWAY_URL": "http://g", "PREFLOOP_STARTED_AT": "1", "PREFLOOP_TEST_KAFKA": "x",
        "PREFLOOP_GATEWAY_PORT": "tcp://10.0.0.1:8800", "PREFLOOP_GATEWAY_PORT_8800_TCP_PORT": "8800",
        "PREFLOOP_GATEWAY_SERVICE_HOST": "10.0.0.1", "PREFLOOP_GATEWAY_SERVICE_PORT_HTTP": "8800",
        "PREFLOOP_PORT": "tcp://10.0.0.1:80", "PREFLOOP_SERVICE_PORT": "80", "PREFLOOP_PORT_80_TCP": "tcp://10.0.0.1:80",
    }  # fmt: skip
    for name, value in others.items():
        monkeypatch.setenv(name, value)
    assert Settings().section == Section()


@pytest.mark.parametrize(
    ("kafka", "problem"),
    [
        ({"sasl_password": "secret"}, "sasl_password is set, but security = 'plaintext' does not use it"),
        ({"ca_file": "ca.pem", "security": "sasl_plaintext", "sasl_username": "u"}, "ca_file is set, but"),
        ({"security": "sasl_ssl"}, "needs sasl_username"),
        ({"security": "ssl", "key_file": "key.pem"}, "key_file is set without cert_file"),
        ({"replication_factor": 2, "min_insync_replicas": 3}, "no record could be written"),
    ],
)
def test_a_kafka_section_that_cannot_work_is_refused(kafka: dict[str, Any], problem: str) -> None:
    with pytest.raises(SettingsError, match=problem):
        SharedSettings(kafka=kafka)
