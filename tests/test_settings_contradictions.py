"""Values that cannot hold together are refused, in one line, by the process they are for."""

from typing import Any

import pytest

from feedback.errors import SettingsError
from gateway.settings import GatewaySettings
from trainer.settings import TrainerSettings

STEPS = [{"weight": 0.5, "hold_s": 1.0}, {"weight": 0.2}]


@pytest.mark.parametrize(
    ("section", "values", "problem"),
    [
        ("rollout", {"min_users": 300, "max_users": 200}, r"min_users \(300\) is above max_users \(200\)"),
        ("rollout", {"max_users": 99}, r"min_users \(100\) is above max_users \(99\)"),
        ("rollout", {"min_s": 10.0, "max_s": 5.0}, r"min_s \(10\) is above max_s \(5\)"),
        ("rollout", {"lease_s": 0.1}, r"report_s \(0\.5\) is above lease_s"),
        ("rollout", {"silent_s": 1.0}, r"lease_s \(5\) is above silent_s"),
        ("rollout", {"steps": STEPS}, r"the weight falls from 0\.5 to 0\.2 at step 2"),
        ("rollout", {"steps": [{"weight": 0.1}, {"weight": 0.2}]}, "step 1 has no hold_s, so step 2 would never come"),
        ("rollout", {"steps": [{"weight": 0.1, "hold_s": -1}]}, "greater than or equal to 0"),
        ("rollout", {"evidence_unit": "comparison"}, "evidence_unit comparison needs cap 1, not 5"),
        ("rollout", {"approve_early": True, "auto_approve": True}, "approve_early asks a person"),
        ("gateway", {"breaker_backoff_s": 60.0}, r"breaker_backoff_s \(60\) is above breaker_max_backoff_s \(30\)"),
        ("gateway", {"engines": ["localhost:8801"]}, "must begin with http://"),
        ("gateway", {"engines": ["http://e:1", "http://e:1/"]}, "listed twice"),
        ("gateway", {"database_url": "mysql://db"}, "must begin with sqlite:"),
        ("gateway", {"otlp_endpoint": "collector:4318"}, "must begin with http://"),
    ],
)
def test_the_gateway_refuses(section: str, values: dict[str, Any], problem: str) -> None:
    with pytest.raises(SettingsError, match=problem) as refused:
        GatewaySettings(**{section: values})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"round_min_preferences": 2000}, r"round_min_preferences \(2000\) is above round_every_preferences \(1000\)"),
        ({"gateway_url": "127.0.0.1:8800"}, "must begin with http://"),
        ({"database_url": "trainer.db"}, "must begin with sqlite:"),
    ],
)
def test_the_trainer_refuses(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(SettingsError, match=problem):
        TrainerSettings(trainer=values)


def test_rounds_may_be_small_where_the_minimum_is_only_a_default() -> None:
    assert TrainerSettings(trainer={"round_every_preferences": 50}).trainer.round_every_preferences == 50


@pytest.mark.parametrize("preset", ["default", "demo", "demo-smollm2", "personal"])
def test_every_preset_holds_together(preset: str) -> None:
    assert GatewaySettings(preset=preset).preset == TrainerSettings(preset=preset).preset == preset
