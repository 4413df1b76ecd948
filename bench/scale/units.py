"""What one thing costs: the unit costs that bench-scale measures here, and those that it can only assume.

Measured ones are kept in measured.json as the last whole run wrote them, so that docs/scale.md and the plan say the same.
"""

from dataclasses import dataclass
from pathlib import Path

import msgspec

MEASURED = Path(__file__).with_name("measured.json")


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """Costs of one thing on the machine that `machine` describes. CPU times are of one core, bytes as stored.

    A request has 478 bytes and its answer 591, a stream's has 64 events; a comparison has a prompt of 60 tokens and two
    answers of 110, with their token ids. gateway_rss_mb is of a gateway without open streams.
    """

    machine: str
    request_cpu_us: float
    event_cpu_us: float
    gateway_rss_mb: float
    open_stream_kb: float
    completion_bytes: float
    comparison_cpu_us: float
    comparison_bytes: float
    choice_cpu_us: float
    choice_bytes: float
    choices_per_s: float
    relay_cpu_us: float
    event_bytes: float
    intake_cpu_us: float
    inbox_bytes: float


@dataclass(frozen=True)
class Assumed:
    """What cannot be measured here: GPUs, prices, a larger database server. Each is a figure to replace by your own.

    engine_tokens_per_s: tokens made a second by one GPU with an 8B model in bfloat16, well batched. flops: dense bfloat16,
    a second, of one GPU; utilisation: the share that training reaches. database_gain: transactions a second of a real
    PostgreSQL server over this machine's, which shares two cores with its clients.
    """

    engine_tokens_per_s: float = 2500.0
    gpu_flops: float = 990e12
    utilisation: float = 0.35
    database_gain: float = 8.0
    gpu_hour: float = 2.5
    core_hour: float = 0.04
    disk_gb_month: float = 0.10
    object_gb_month: float = 0.023
    swap_s: float = 5.0
    judging_s: float = 300.0
    trial_users_per_s: float = 20.0


def read_measured(path: Path = MEASURED) -> Measured:
    """The last whole run's figures. Raises OSError or msgspec.DecodeError."""
    return msgspec.json.decode(path.read_bytes(), type=Measured)


def write_measured(measured: Measured, path: Path = MEASURED) -> None:
    """Keep a whole run's figures."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(measured), indent=1) + b"\n")
