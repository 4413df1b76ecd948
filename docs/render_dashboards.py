"""Writes Grafana's dashboards, docs/dashboards/*.json, from the panels below: run `make docs` after changing them.

A test compares them, and runs every query against a real Prometheus. The data source is a variable, so that they can be provisioned.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).with_name("dashboards")
_COLUMNS, _WIDTH, _HEIGHT = 3, 8, 8  # of Grafana's 24 columns
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_RATE = "[$__rate_interval]"


@dataclass(frozen=True)
class Panel:
    """A plot: its title, unit of the axis, what it says, and queries by the legend of their series."""

    title: str
    unit: str
    text: str
    queries: dict[str, str]


def rate(metric: str, by: str = "") -> str:
    """Per second, summed over gateways."""
    return f"sum{f' by ({by})' if by else ''} (rate({metric}{_RATE}))"


def quantile(share: float, histogram: str, by: str = "") -> str:
    """A quantile of a histogram, over all gateways."""
    labels = ", ".join(["le", *([by] if by else [])])
    return f"histogram_quantile({share}, sum by ({labels}) (rate({histogram}_bucket{_RATE})))"


def leader(metric: str, by: str = "") -> str:
    """Of a rollout's figures: one gateway has them, the leader."""
    return f"max{f' by ({by})' if by else ''} ({metric})"


OVERVIEW = [
    Panel("Answers", "reqps", "Answers a second, by who gave them; none: refused before an engine was asked.",
          {"{{arm}}": rate("prefloop_requests_total", "arm")}),
    Panel("Failed", "percentunit", "Share of answers with a 5xx status, cut-off streams included.",
          {"failed": f'(sum(rate(prefloop_requests_total{{code=~"5.."}}{_RATE})) or vector(0))'
                     f" / sum(rate(prefloop_requests_total{_RATE}))"}),
    Panel("First token", "s", "Streams: wait for the first byte.",
          {"median": quantile(0.5, "prefloop_time_to_first_token_seconds"),
           "95%": quantile(0.95, "prefloop_time_to_first_token_seconds")}),
    Panel("In flight", "short", "Requests that are being answered.", {"{{instance}}": "prefloop_requests_in_flight"}),
    Panel("Checkpoints", "short", "What serves, by each gateway's view.",
          {"{{arm}} {{checkpoint}}": "max by (arm, checkpoint) (prefloop_checkpoint_info)"}),
    Panel("Phase of the rollout", "short", "Nothing is shown without one.",
          {"{{phase}}": leader("prefloop_rollout_phase", "phase") + " == 1"}),
    Panel("Comparisons", "short", "Shown a minute, by why they were asked.",
          {"{{asked}}": f"60 * {rate('prefloop_comparisons_total', 'asked')}"}),
    Panel("Choices", "short", "Acknowledged a minute, by what was preferred.",
          {"{{preferred}}": f"60 * {rate('prefloop_choices_total', 'preferred')}"}),
    Panel("Waiting to be learnt", "short", "Rows that wait for the log, and records that the trainer has not read.",
          {"outbox {{instance}}": "prefloop_outbox_pending", "lag": "prefloop_consumer_lag"}),
    Panel("Reward model", "percentunit", "Accuracy on held-out decisive preferences.", {"accuracy": "prefloop_reward_accuracy"}),
    Panel("Alerts", "short", "What fires now.",
          {"{{alertname}} ({{severity}})": 'sum by (alertname, severity) (ALERTS{alertstate="firing"})'}),
    Panel("CPU", "short", "Cores, by process.",
          {"{{job}} {{instance}}": f'rate(process_cpu_seconds_total{{job=~"prefloop-.*"}}{_RATE})'}),
]  # fmt: skip

ROLLOUT = [
    Panel("Phase", "short", "", {"{{phase}}": leader("prefloop_rollout_phase", "phase") + " == 1"}),
    Panel("Ramp", "percentunit", "Share of users whom the canary serves, and of those who may duel.",
          {"weight": leader("prefloop_rollout_weight_ratio"), "duel share": leader("prefloop_rollout_duel_share_ratio")}),
    Panel("On trial", "short", "The rollout, and why it is where it is.",
          {"{{rollout}}: {{checkpoint}} against {{stable}}, {{analysis}}, {{reason}}":
           "max by (rollout, checkpoint, stable, analysis, reason) (prefloop_rollout_info)"}),
    Panel("Net win rate", "percentunit", "Wins less losses over users, with its 90% interval.",
          {"estimate": leader('prefloop_gate_estimate{gate="superiority"}'),
           "lower": leader('prefloop_gate_ci_lower{gate="superiority"}'),
           "upper": leader('prefloop_gate_ci_upper{gate="superiority"}')}),
    Panel("Preference, share of its line", "percentunit",
          "ln E over what it must reach: at 1, superiority promotes and inferiority ends it.",
          {"{{gate}}": leader('prefloop_gate_log_e_value{gate=~"superiority|inferiority|rollback"}'
                              " / prefloop_gate_log_threshold", "gate")}),
    Panel("State of gates", "short", "One state a gate.",
          {"{{gate}}: {{status}}": leader("prefloop_gate_status", "gate, status") + " == 1"}),
    Panel("Guardrails, share of their line", "percentunit", "ln E that the canary is good enough: at 1 it has passed.",
          {"{{gate}}": leader('prefloop_gate_log_e_value{gate=~"errors|truncation|refusals|harm|kl"}'
                              " / prefloop_gate_log_threshold", "gate")}),
    Panel("Alarms, share of their line", "percentunit", "ln E that the canary is worse: at 1 the guardrail fails.",
          {"{{gate}}": leader('prefloop_gate_log_e_value{gate=~".+_alarm"} / prefloop_gate_log_threshold', "gate")}),
    Panel("The canary's rates", "percentunit", "Of first requests, with the upper end of the 90% interval.",
          {"{{gate}}": leader('prefloop_gate_estimate{gate!~"superiority|length|tripwire_.+"}', "gate"),
           "{{gate}}, at most": leader('prefloop_gate_ci_upper{gate!="superiority"}', "gate")}),
    Panel("Tripwires", "percentunit", "How the canary's answers differ in what is no merit.",
          {"{{gate}}": leader('prefloop_gate_estimate{gate=~"tripwire_.+"}', "gate")}),
    Panel("Clean users missing", "short", "Until a guardrail passes.",
          {"{{gate}}": leader("prefloop_gate_missing_users", "gate")}),
    Panel("What sensors saw", "short", "Answers of this rollout; a sensor that stays at 0 is blind.",
          {"{{gate}}": leader("prefloop_sensor_seen_total", "gate")}),
    Panel("Users", "short", "Who have entered the evidence, who wait, and how many it would take to undo it.",
          {"entered": leader("prefloop_duel_users"), "waiting": leader("prefloop_duel_waiting_users"),
           "fragility": leader("prefloop_rollout_fragility_users")}),
    Panel("The busiest user", "percentunit", "Share of the decided duels.", {"share": leader("prefloop_duel_top_user_ratio")}),
    Panel("Duels", "short", "Decided a minute, from the canary's side.",
          {"{{outcome}}": f"60 * {rate('prefloop_duels_total', 'outcome')}"}),
    Panel("Win rate by place", "percentunit", "Of decisive duels in an hour, by where the canary's answer was shown.",
          {"shown {{position}}": 'sum by (position) (increase(prefloop_duels_total{outcome="win", position!="none"}[1h]))'
                                 ' / sum by (position) (increase(prefloop_duels_total{outcome=~"win|loss", position!="none"}[1h]))'}),
    Panel("Sample ratio", "short", "ln E that users, or places on the page, are not split as intended.",
          {"{{check}}": leader("prefloop_srm_log_e_value", "check"),
           "line": leader('prefloop_gate_log_threshold{gate="split"}')}),
    Panel("First token by arm, 95%", "s", "", {"{{arm}}": quantile(0.95, "prefloop_time_to_first_token_seconds", "arm")}),
    Panel("Time per token by arm, 95%", "s", "", {"{{arm}}": quantile(0.95, "prefloop_time_per_output_token_seconds", "arm")}),
    Panel("Tokens of an answer by arm", "short", "The mean.",
          {"{{arm}}": f"{rate('prefloop_output_tokens_sum', 'arm')} / {rate('prefloop_output_tokens_count', 'arm')}"}),
    Panel("Refusals by arm", "percentunit", "Answers that refuse, by their engine's field or by their words, of those that were read.",
          {"{{arm}}": f"{rate('prefloop_refusals_read_total', 'arm')} / {rate('prefloop_refusal_reads_total', 'arm')}"}),
    Panel("Transitions", "short", "In an hour.",
          {"{{from}} to {{to}} ({{actor}})":
           "sum by (from, to, actor) (increase(prefloop_rollout_transitions_total[1h])) > 0"}),
    Panel("Stopped or paused by a gate", "short", "Canaries in an hour.",
          {"{{gate}}": "sum by (gate) (increase(prefloop_gate_failures_total[1h]))"}),
    Panel("Weighed", "s", "Time since the leader weighed the evidence.", {"age": leader("prefloop_rollout_evaluation_age_seconds")}),
    Panel("Generations", "short", "Of the views that gateways serve by, and who leads.",
          {"{{instance}}": "prefloop_rollout_generation", "{{instance}} leads": "prefloop_controller_leads"}),
]  # fmt: skip

LEARNING = [
    Panel("Preferences", "short", "Stored by the trainer.", {"preferences": "prefloop_preferences"}),
    Panel("Reward model", "percentunit", "Accuracy on held-out decisive preferences.", {"accuracy": "prefloop_reward_accuracy"}),
    Panel("Version of the reward model", "short", "", {"version": "prefloop_reward_version"}),
    Panel("Rounds", "short", "Finished in a day, by how they ended.",
          {"{{outcome}}": "sum by (outcome) (increase(prefloop_rounds_total[1d]))"}),
    Panel("Progress of the round", "percentunit", "", {"progress": "prefloop_round_progress"}),
    Panel("Checkpoints", "short", "Published.", {"checkpoints": "prefloop_checkpoints"}),
    Panel("Drift", "short", "Figures of the stable checkpoint that are clearly other in traffic than when it was judged.",
          {"figures": "prefloop_drifted_figures"}),
    Panel("Sampling beside people", "short", "Most answers sampled at a time, and how many times as long people wait.",
          {"at a time": "prefloop_samples_in_flight_cap", "slowdown": "prefloop_sampling_slowdown"}),
    Panel("Failures of the learner", "short", "In an hour.", {"failures": "increase(prefloop_learner_errors_total[1h])"}),
    Panel("Set aside", "short", "Preferences that learning could not use.", {"quarantined": "prefloop_quarantined_preferences"}),
    Panel("How pairs were picked", "short", "Comparisons that are no duels a minute, by share.",
          {"{{share}}": f"60 * {rate('prefloop_asks_total', 'share')}"}),
    Panel("Scorer", "s", "Time it takes to pick, 95%, and comparisons a minute that are random for want of it.",
          {"95%": quantile(0.95, "prefloop_scorer_pick_seconds"),
           "{{reason}}": f"60 * {rate('prefloop_scorer_failures_total', 'reason')}"}),
]  # fmt: skip

FEEDBACK = [
    Panel("Comparisons", "short", "Shown a minute, by why they were asked.",
          {"{{asked}}": f"60 * {rate('prefloop_comparisons_total', 'asked')}"}),
    Panel("Two were due, one was given", "short", "A minute, by why.",
          {"{{reason}}": f"60 * {rate('prefloop_not_paired_total', 'reason')}"}),
    Panel("Choices", "short", "Acknowledged a minute, by what was preferred.",
          {"{{preferred}}": f"60 * {rate('prefloop_choices_total', 'preferred')}"}),
    Panel("Signals", "short", "Acknowledged a minute.", {"signals": f"60 * {rate('prefloop_signals_total')}"}),
    Panel("Waiting for the log", "short", "Choices and signals.", {"{{instance}}": "prefloop_outbox_pending"}),
    Panel("Oldest of them", "s", "How long it has waited.", {"{{instance}}": "prefloop_outbox_oldest_age_seconds"}),
    Panel("Relay", "short", "Records moved to the log a minute, and attempts that failed.",
          {"moved": f"60 * {rate('prefloop_relay_moved_total')}", "failed": f"60 * {rate('prefloop_relay_failures_total')}"}),
    Panel("Not consumed", "short", "Records of the log, by partition.",
          {"all": "prefloop_consumer_lag", "partition {{partition}}": "prefloop_consumer_partition_lag"}),
    Panel("Consumed", "short", "Preferences a minute, and failures.",
          {"preferences": f"60 * {rate('prefloop_consumed_total')}", "failures": f"60 * {rate('prefloop_consumer_errors_total')}"}),
    Panel("Partitions", "short", "Owned by each trainer; 0 everywhere: nobody reads.",
          {"{{instance}}": "prefloop_consumer_partitions"}),
    Panel("Set aside", "short", "Records that could not be read, and preferences that could not be learnt from.",
          {"dead letters": "prefloop_dead_letters", "quarantined": "prefloop_quarantined_preferences"}),
    Panel("Lost", "short", "Records that retention took before they were read, in a day. It should be 0.",
          {"lost": "increase(prefloop_lost_records_total[1d])"}),
    Panel("Single answers recorded", "short", "A minute, and those that were dropped, by why.",
          {"recorded": f"60 * {rate('prefloop_completions_recorded_total')}",
           "dropped, {{reason}}": f"60 * {rate('prefloop_completions_dropped_total', 'reason')}"}),
    Panel("Single answers waiting", "short", "To be recorded.", {"{{instance}}": "prefloop_completions_pending"}),
]  # fmt: skip

ENGINES = [
    Panel("Up", "short", "By each gateway's last look.", {"{{engine}} by {{instance}}": "prefloop_engine_up"}),
    Panel("Engines known", "short", "By each gateway, by who named them: settings, whoever runs whole models, a name in DNS.",
          {"{{source}} by {{instance}}": "prefloop_engines"}),
    Panel("Lookups", "short", "Of names for engines, a minute: `empty` and `failed` change nothing.",
          {"{{source}}, {{outcome}}": f"60 * {rate('prefloop_engine_lookups_total', 'source, outcome')}"}),
    Panel("Hung", "short", "Out for a hang: it takes requests and makes no tokens.",
          {"{{engine}} by {{instance}}": "prefloop_engine_hung"}),
    Panel("Breakers", "short", "The phase of each.",
          {"{{engine}}: {{phase}}": "max by (engine, phase) (prefloop_engine_breaker) == 1"}),
    Panel("In flight", "short", "Sent to the engine and not ended.",
          {"{{engine}}": "sum by (engine) (prefloop_engine_requests_in_flight)"}),
    Panel("Repeated", "short", "Calls a minute that were asked again, and requests stopped because two engines were lost over them.",
          {"repeated": f"60 * {rate('prefloop_engine_retries_total')}", "stopped": f"60 * {rate('prefloop_requests_stopped_total')}"}),
    Panel("First token", "s", "As the gateway sees it.",
          {"median": quantile(0.5, "prefloop_time_to_first_token_seconds"),
           "95%": quantile(0.95, "prefloop_time_to_first_token_seconds")}),
    Panel("vLLM: requests", "short", "Running, and waiting in its queue.",
          {"running {{instance}}": "vllm:num_requests_running", "waiting {{instance}}": "vllm:num_requests_waiting"}),
    Panel("vLLM: tokens", "short", "Read and written a second.",
          {"prompt {{instance}}": f"rate(vllm:prompt_tokens_total{_RATE})",
           "generation {{instance}}": f"rate(vllm:generation_tokens_total{_RATE})"}),
    Panel("vLLM: cache", "percentunit", "Of keys and values: how full, and how much of prompts was found there.",
          {"full {{instance}}": "vllm:kv_cache_usage_perc",
           "hits {{instance}}": f"rate(vllm:prefix_cache_hits_total{_RATE}) / rate(vllm:prefix_cache_queries_total{_RATE})"}),
    Panel("vLLM: time in its queue, 95%", "s", "", {"{{instance}}": quantile(0.95, "vllm:request_queue_time_seconds", "instance")}),
    Panel("vLLM: between tokens, 95%", "s", "", {"{{instance}}": quantile(0.95, "vllm:inter_token_latency_seconds", "instance")}),
    Panel("vLLM: preempted", "short", "Requests a minute that had to make room.",
          {"{{instance}}": f"60 * rate(vllm:num_preemptions_total{_RATE})"}),
]  # fmt: skip

DASHBOARDS = {
    "overview": ("prefloop: overview", OVERVIEW),
    "rollout": ("prefloop: rollout", ROLLOUT),
    "learning": ("prefloop: learning", LEARNING),
    "feedback": ("prefloop: feedback road", FEEDBACK),
    "engines": ("prefloop: engines", ENGINES),
}


def render_dashboard(name: str) -> str:
    """A dashboard as Grafana's JSON."""
    title, panels = DASHBOARDS[name]
    source = {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}
    links = {"type": "dashboards", "title": "prefloop", "tags": ["prefloop"], "asDropdown": True, "includeVars": True}
    dashboard = {
        "uid": f"prefloop-{name}", "title": title, "tags": ["prefloop"], "schemaVersion": 38, "version": 1,
        "editable": True, "timezone": "browser", "refresh": "30s", "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": [source]}, "links": [links],
        "panels": [_render_panel(number, panel) for number, panel in enumerate(panels)],
    }  # fmt: skip
    return json.dumps(dashboard, indent=1) + "\n"


def _render_panel(number: int, panel: Panel) -> dict[str, Any]:
    row, column = divmod(number, _COLUMNS)
    targets = [
        {"refId": chr(ord("A") + n), "datasource": _SOURCE, "expr": query, "legendFormat": legend}
        for n, (legend, query) in enumerate(panel.queries.items())
    ]
    return {
        "id": number + 1, "type": "timeseries", "title": panel.title, "description": panel.text, "datasource": _SOURCE,
        "gridPos": {"x": column * _WIDTH, "y": row * _HEIGHT, "w": _WIDTH, "h": _HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit}, "overrides": []}, "targets": targets,
    }  # fmt: skip


if __name__ == "__main__":
    for each in DASHBOARDS:
        (FOLDER / f"{each}.json").write_text(render_dashboard(each))
