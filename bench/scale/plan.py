"""What a load needs, from unit costs alone: pure arithmetic, a row for each quantity, in the order of the road.

Nothing is simulated: queues, skew between partitions and the neighbours of a shared machine are covered by HEADROOM alone.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from bench.scale.units import Assumed, Measured

DAY_S = 86_400.0
MONTH_DAYS = 30.0
REPORT_S = 0.5  # rollout.report_s
HEADROOM = 0.6  # the share of a core, a GPU or a server that is planned with


@dataclass(frozen=True)
class Load:
    """What people ask and choose. Shares are 0 to 1, rates are means over a day; `peak` times that is planned for.

    answered_share: of comparisons that are shown; active_params: of the policy, for one token. rounds_per_day: each learns
    from round_pairs. reward_share: of choices that the reward model learns from, each `reward_repeats` times in all.
    """

    requests_per_s: float = 10_000.0
    choices_per_day: float = 10e6
    peak: float = 2.0
    streamed_share: float = 0.8
    prompt_tokens: float = 500.0
    answer_tokens: float = 250.0
    answer_s: float = 8.0
    answered_share: float = 0.5
    active_params: float = 8e9
    adapter_mb: float = 84.0
    rounds_per_day: float = 4.0
    round_pairs: float = 50_000.0
    round_gpus: float = 8.0
    reward_share: float = 0.05
    reward_repeats: float = 2.0
    record_share: float = 0.01
    completions_keep_days: float = 3.0
    log_keep_days: float = 30.0
    log_copies: float = 3.0
    database_keep_days: float = 7.0
    trial_users: float = 400.0


@dataclass(frozen=True)
class Row:
    """One quantity of the plan; `of` says what it is made of."""

    part: str
    what: str
    value: float
    unit: str
    of: str


@dataclass(frozen=True)
class Plan:
    """All rows; money a month by part; utilisation: of one unit of each part (a process, a server, a partition's reader)
    at a tenth of the load, for what must be split first."""

    rows: list[Row]
    cost: dict[str, float]
    single: dict[str, float]

    def find(self, part: str, what: str) -> float:
        """The value of a row. Raises StopIteration if there is none."""
        return next(row.value for row in self.rows if (row.part, row.what) == (part, what))


def make_plan(load: Load, unit: Measured, assumed: Assumed) -> Plan:
    """The plan of a load."""
    rows = [
        *_plan_asking(load),
        *_plan_gateways(load, unit),
        *_plan_engines(load, assumed),
        *_plan_log(load, unit),
        *_plan_trainer(load, unit, assumed),
    ]
    plan = Plan(rows, {}, {})
    rows += _plan_database(plan.find("gateway", "processes"), load, unit, assumed)
    rows += _plan_delay(load, unit, assumed)
    plan.cost.update(_sum_cost(plan, load, assumed))
    plan.single.update(_find_limits(load, unit, assumed))
    return plan


def _peak_requests(load: Load) -> float:
    return load.requests_per_s * load.peak


def _peak_choices(load: Load) -> float:
    return load.choices_per_day / DAY_S * load.peak


def _gateway_cpu_us(load: Load, unit: Measured) -> float:
    """Of a mean request, pairs and choices left out: a stream costs its events on top."""
    return unit.request_cpu_us + load.streamed_share * load.answer_tokens * unit.event_cpu_us


def _plan_asking(load: Load) -> Iterator[Row]:
    shown = load.choices_per_day / load.answered_share
    yield Row("asking", "choices", _peak_choices(load), "/s at the peak", "choices a day x peak / 86,400")
    yield Row("asking", "comparisons shown", shown / 1e6, "million/day", "choices / share that is answered")
    share = shown / (load.requests_per_s * DAY_S)
    yield Row("asking", "requests answered twice", 100 * share, "%", "comparisons / requests")


def _plan_gateways(load: Load, unit: Measured) -> Iterator[Row]:
    cpu_us = _gateway_cpu_us(load, unit)
    yield Row("gateway", "CPU of a request", cpu_us / 1000, "ms", "request + streamed share x answer tokens x event")
    cores = _peak_requests(load) * cpu_us / 1e6
    comparisons = _peak_choices(load) / load.answered_share
    cores += (comparisons * (unit.comparison_cpu_us + cpu_us) + _peak_choices(load) * unit.choice_cpu_us) / 1e6
    yield Row(
        "gateway", "cores in use", cores, "cores", "requests, second answers, comparisons and choices at the peak"
    )
    yield Row("gateway", "processes", math.ceil(cores / HEADROOM), "", f"a core each, {HEADROOM:.0%} of it in use")
    streams = _peak_requests(load) * load.answer_s
    yield Row("gateway", "answers in flight", streams, "", "requests/s x seconds of an answer")
    memory = math.ceil(cores / HEADROOM) * unit.gateway_rss_mb / 1e3 + streams * unit.open_stream_kb / 1e6
    yield Row("gateway", "memory", memory, "GB", "processes + open streams")


def _plan_engines(load: Load, assumed: Assumed) -> Iterator[Row]:
    shown = _peak_choices(load) / load.answered_share
    tokens = (_peak_requests(load) + shown) * load.answer_tokens
    yield Row("engine", "tokens", tokens / 1e6, "million/s at the peak", "(requests + second answers) x answer tokens")
    gpus = math.ceil(tokens / assumed.engine_tokens_per_s / HEADROOM)
    yield Row("engine", "GPUs", gpus, "", f"tokens / one GPU's (assumed), {HEADROOM:.0%} in use")
    yield Row("engine", "adapter sent to nodes", gpus / 8 * load.adapter_mb / 1e3, "GB/checkpoint", "8 GPUs a node")


def _plan_database(num_gateways: float, load: Load, unit: Measured, assumed: Assumed) -> Iterator[Row]:
    shown = load.choices_per_day / load.answered_share
    rows = shown + 2 * load.choices_per_day
    yield Row("database", "rows written", rows / 1e6, "million/day", "comparisons, choices, outbox")
    reports = num_gateways / REPORT_S
    yield Row(
        "database",
        "gateways' reports",
        reports,
        "commits/s",
        f"each, every {REPORT_S:g} s",
    )
    yield Row(
        "database",
        "reports read",
        reports * num_gateways,
        "rows/s",
        "each reads all the others': it grows with the square",
    )
    per_s = _peak_choices(load) * (1 + 1 / load.answered_share) + reports
    yield Row("database", "commits", per_s, "/s at the peak", "comparisons + choices, before group commit, + reports")
    capacity = unit.choices_per_s * assumed.database_gain
    yield Row(
        "database", "of one server", 100 * per_s / capacity, "%", "choices/s here x a real server's gain (assumed)"
    )
    day_gb = (shown * unit.comparison_bytes + load.choices_per_day * unit.choice_bytes) / 1e9
    yield Row("database", "growth", day_gb, "GB/day", "comparisons and choices as PostgreSQL keeps them")
    kept = day_gb * load.database_keep_days
    yield Row("database", "kept", kept / 1e3, "TB", f"{load.database_keep_days:.0f} days")
    recorded_gb = load.requests_per_s * DAY_S * load.record_share * unit.completion_bytes / 1e9
    whole_tb = recorded_gb / load.record_share / 1e3
    yield Row(
        "database",
        "answers recorded",
        recorded_gb,
        "GB/day",
        f"record_share {load.record_share:g}; all: {whole_tb:.1f} TB/day",
    )


def _plan_log(load: Load, unit: Measured) -> Iterator[Row]:
    mb_s = _peak_choices(load) * unit.event_bytes / 1e6
    yield Row("log", "written", mb_s, "MB/s at the peak", "choices x bytes of an event")
    readers = _peak_choices(load) * unit.intake_cpu_us / 1e6
    yield Row("log", "partitions needed", max(1, math.ceil(readers / HEADROOM)), "", "as many readers as intake needs")
    relay = _peak_choices(load) * unit.relay_cpu_us / 1e6
    yield Row("log", "relay", relay, "cores", "one gateway at a time moves the outbox")
    kept = load.choices_per_day * unit.event_bytes * load.log_keep_days * load.log_copies / 1e12
    yield Row("log", "kept", kept, "TB", f"{load.log_keep_days:.0f} days, {load.log_copies:.0f} copies")


def _plan_trainer(load: Load, unit: Measured, assumed: Assumed) -> Iterator[Row]:
    yield Row("trainer", "intake", _peak_choices(load) * unit.intake_cpu_us / 1e6, "cores", "choices x intake")
    yield Row(
        "trainer", "inbox", load.choices_per_day * unit.inbox_bytes / 1e9, "GB/day", "rows of the trainer's database"
    )
    flops = assumed.gpu_flops * assumed.utilisation
    pair_tokens = load.prompt_tokens + 2 * load.answer_tokens  # both answers share their prompt
    # forward 2 and backward 4 floating point operations for a parameter and token
    reward_tokens = load.choices_per_day * load.reward_share * load.reward_repeats * pair_tokens
    reward = reward_tokens * 6 * load.active_params / flops / DAY_S
    made_of = (
        f"{load.reward_share:.0%} of choices, {load.reward_repeats:.0f} times; all: {reward / load.reward_share:.1f}"
    )
    yield Row(
        "trainer",
        "GPUs for the reward model",
        reward,
        "",
        made_of,
    )
    seconds = _round_s(load, assumed)
    yield Row(
        "trainer",
        "a DPO round",
        seconds / 60,
        "min",
        f"{load.round_pairs:,.0f} pairs on {load.round_gpus:.0f} GPUs",
    )


def _round_s(load: Load, assumed: Assumed) -> float:
    pair_tokens = load.prompt_tokens + 2 * load.answer_tokens
    flops = load.round_pairs * pair_tokens * (6 + 2) * load.active_params  # training, and the reference forward
    return flops / (assumed.gpu_flops * assumed.utilisation * load.round_gpus)


def _plan_delay(load: Load, unit: Measured, assumed: Assumed) -> Iterator[Row]:
    wait = DAY_S / load.rounds_per_day / 2
    seconds = wait + _round_s(load, assumed) + assumed.judging_s + assumed.swap_s
    yield Row(
        "loop",
        "from a choice to a canary",
        seconds / 3600,
        "h",
        "half the pause between rounds + round + offline gate + swap",
    )
    trial = load.trial_users / assumed.trial_users_per_s / load.answered_share
    yield Row("loop", "users for a verdict", trial / 60, "min", "the ramp's own times (24 h by default) are longer")


def _sum_cost(plan: Plan, load: Load, assumed: Assumed) -> dict[str, float]:
    """Money a month, in the currency of the prices."""
    hours = 24 * MONTH_DAYS
    training = plan.find("trainer", "GPUs for the reward model") * hours
    training += (
        load.round_gpus * load.rounds_per_day * MONTH_DAYS * (_round_s(load, assumed) + assumed.judging_s) / 3600
    )
    return {
        "engine GPUs": plan.find("engine", "GPUs") * assumed.gpu_hour * hours,
        "gateway cores": plan.find("gateway", "processes") * assumed.core_hour * hours,
        "training GPUs": training * assumed.gpu_hour,
        "log and database disks": 1e3
        * (plan.find("log", "kept") + plan.find("database", "kept"))
        * assumed.disk_gb_month,
    }


def _find_limits(load: Load, unit: Measured, assumed: Assumed) -> dict[str, float]:
    """Requests a second, at the same share of choices, at which one unit of a part is full: the lowest comes first."""
    choices_per_request = load.choices_per_day / DAY_S / load.requests_per_s
    per_choice = {
        "one PostgreSQL server": unit.choices_per_s * assumed.database_gain / (1 + 1 / load.answered_share),
        "one relay": 1e6 / unit.relay_cpu_us,
        "one intake thread": 1e6 / unit.intake_cpu_us,
    }
    flops = assumed.gpu_flops * assumed.utilisation
    pair_tokens = load.prompt_tokens + 2 * load.answer_tokens
    reward = flops / (pair_tokens * 6 * load.active_params * load.reward_repeats)  # choices/s of one GPU
    limits = {name: HEADROOM * per_s / choices_per_request / load.peak for name, per_s in per_choice.items()}
    limits["one GPU for the reward model, every choice"] = HEADROOM * reward / choices_per_request
    limits["one gateway"] = HEADROOM * 1e6 / _gateway_cpu_us(load, unit) / load.peak
    limits["one engine GPU"] = HEADROOM * assumed.engine_tokens_per_s / load.answer_tokens / load.peak
    return dict(sorted(limits.items(), key=lambda each: each[1]))
