"""What a demo was asked for on the command line."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from prefloop.startup import DatabaseKind, LogKind

Algorithm = Literal["dpo", "ppo", "sft"]  # how rounds learn


@dataclass(frozen=True)
class DemoOptions:
    """What the command line asked for. 0 or None: no limit, no file; "": the seed policy, the world's own taste."""

    until_promotions: int = 0
    until_choices: int = 0
    num_aa: int = 0
    auto_approve: bool = False
    seed: int = 0
    report: Path | None = None
    model: str = ""
    taste: str = ""
    world: Path | None = None
    is_shuffled: bool = False
    algorithm: Algorithm = "dpo"
    timeout_s: float = 0.0
    state_dir: Path = Path("state")
    port: int = 8800
    log: LogKind = "sqlite"
    database: DatabaseKind = "sqlite"

    @property
    def is_unattended(self) -> bool:
        """Whether it ends by itself."""
        return bool(self.until_promotions or self.until_choices or self.num_aa)
