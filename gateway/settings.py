"""The gateway's settings: its sections, and the presets that replace their defaults.

`preset = "demo"` replaces defaults by those for short worlds, `personal` by those for one person; values that were
given explicitly still win. Run as a program it only says whether the settings can be used.
"""

from typing import Any, Self

from pydantic import Field, model_validator

from feedback.database import locate_store
from feedback.settings import SharedSettings, load_settings
from gateway.sections.rollout import RolloutSection
from gateway.sections.serving import GatewaySection

_DEMO: dict[str, dict[str, Any]] = {
    "gateway": {"ask_rate": 1.0, "max_asks_per_user_day": 100_000, "skip_cooldown_s": 0.0, "random_share": 0.0},
    "rollout": {
        "cap": 3,
        "window_s": 30.0,
        "min_users": 40,
        "min_s": 0.0,
        "max_users": 200,
        "max_s": 180.0,
        "steps": [{"weight": 0.25, "hold_s": 10.0}, {"weight": 0.50}],
        "duel_share": 1.0,
        "ceilings": {"errors": 0.10, "truncation": 0.10, "refusals": 0.10, "harm": 0.10},
        "accept_blind": ["harm", "kl"],  # its people report nothing
        "kl": {"share": 0.0},  # two cores have better to do
        "accept_tripwires": ["length", "flattery"],  # how long and how warm an answer is may be just what they like
        "baking_s": 20.0,
        "drain_timeout_s": 30.0,
    },
}
# A real model on two cores answers some 20 comparisons a minute, so that nobody has a second one within a window, and talks
# to the token limit now and then.
_DEMO_SMOLLM2: dict[str, dict[str, Any]] = {
    "gateway": _DEMO["gateway"],
    "rollout": {
        **_DEMO["rollout"],
        "cap": 1,
        "max_s": 1500.0,
        "ceilings": {"errors": 0.10, "truncation": 0.50, "refusals": 0.30, "harm": 0.10},
        "drain_timeout_s": 60.0,
    },
}
# One person who teaches a model alone: every answer is asked about, a trial takes a handful of comparisons, and that person
# decides. Comparisons are the units, so nothing here says what other people would prefer.
_PERSONAL: dict[str, dict[str, Any]] = {
    "gateway": {
        **_DEMO["gateway"],
        "playground_trains": True,
        "playground_user": "me",
        "playground_operates": True,
        "playground_temperature": 0.8,
        "playground_max_tokens": 200,
    },
    "rollout": {
        "evidence_unit": "comparison",
        "cap": 1,
        "window_s": 120.0,
        "alpha": 0.2,
        "min_users": 5,
        "min_s": 0.0,
        "max_users": 200,
        "steps": [{"weight": 0.05}],
        "duel_share": 1.0,
        "ceilings": {"errors": 0.30, "truncation": 0.60, "refusals": 0.50, "harm": 0.30},
        "rollback_threshold": 4.0,
        "accept_blind": ["harm", "kl"],  # one person may never report any
        "kl": {"share": 0.0},
        "accept_tripwires": [
            "length",
            "flattery",
            "questions",
            "reward",
        ],  # it is for that person to say what is better
        "approve_early": True,
        "baking_s": 10.0,
        "baking_weight": 0.0,
        "drain_timeout_s": 60.0,
    },
}
_PRESETS = {"demo": _DEMO, "demo-smollm2": _DEMO_SMOLLM2, "personal": _PERSONAL}


class GatewaySettings(SharedSettings):
    """Everything the gateway reads, from prefloop.toml and PREFLOOP_ variables."""

    gateway: GatewaySection = Field(default_factory=GatewaySection, description="Listening, engines, asking.")
    rollout: RolloutSection = Field(default_factory=RolloutSection, description="How a canary is judged.")

    @classmethod
    def preset_values(cls, preset: str) -> dict[str, Any]:
        """What `preset` puts in place of the defaults."""
        return _PRESETS.get(preset, {})

    @model_validator(mode="after")
    def require_engine_directory(self) -> Self:
        """Raises ValueError where engines could not know what to load."""
        if self.checkpoints_url and self.gateway.engines and not self.gateway.engine_checkpoints_dir:
            raise ValueError(
                "checkpoints_url is set without gateway.engine_checkpoints_dir, where `prefloop sync` puts what engines load"
            )
        return self

    @property
    def gateway_database(self) -> str:
        """The SQLAlchemy URL of the gateway's database."""
        return locate_store("gateway", self.state_dir, self.gateway.database_url)

    @property
    def completions_database(self) -> str:
        """The SQLAlchemy URL of the recorded answers: a file beside SQLite's gateway.db, else the same database."""
        return locate_store("completions", self.state_dir, self.gateway.database_url)


if __name__ == "__main__":
    load_settings(GatewaySettings)
