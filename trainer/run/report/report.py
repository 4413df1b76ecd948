"""The report of a round: one HTML page that needs nothing else, kept in `checkpoints/reports/`. Pure.

Outside the checkpoint's own directory, whose files the manifest lists and the engine reads; a round that was stopped has one
too. Shows what people and policies wrote: everything is escaped, and the page has no script.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from trainer.run.report.plots import draw_lines
from trainer.run.rounds import Ending, OpenRound
from trainer.text.labelled_rows import LabelledPair
from trainer.text.messages import flatten_content

MAX_SAMPLES = 20
MAX_SET_ASIDE = 50
CURVES = (  # title, what the names of the figures begin with
    ("Loss", ("loss", "nll", "policy_loss", "value_loss")),
    ("Margin of chosen over rejected, in nats", ("margin", "chosen_log_ratio", "rejected_log_ratio", "log_ratio")),
    ("Accuracy on the round's own pairs", ("accuracy",)),
    ("KL to the reference", ("kl",)),
    ("Reward of its own answers", ("reward", "return", "value")),
    ("Length of its own answers, in tokens", ("answer_tokens",)),
    (
        "Share of tokens whose update was clipped, and of answers that ended",
        ("clip_share", "value_clip_share", "finished"),
    ),
    ("How far a step moved, nats a token", ("approximate_kl", "entropy")),
    ("Share of the time spent waiting for answers", ("share_generating",)),
    ("Dropped answers, and what sampled tokens count", ("dropped", "importance_weight")),
    ("Gradient norm", ("grad_norm",)),
)
_STYLE = """
:root{color-scheme:light dark}body{font:15px/1.5 system-ui,sans-serif;max-width:980px;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;width:100%;margin:.5rem 0}td,th{border-bottom:1px solid #8884;padding:.25rem .5rem;
text-align:left;vertical-align:top;overflow-wrap:anywhere}figure{display:inline-block;width:46%;margin:1%}
figcaption{font-size:13px}svg{width:100%}svg text{font-size:10px;fill:currentColor}svg rect{fill:none;stroke:#8886}
.said{white-space:pre-wrap}h1 small{font-weight:normal;opacity:.7}
"""


@dataclass(frozen=True)
class ReportData:
    """What a report shows.

    curve: the round's figures by `share` of its training; history: those of the reward model's updates by `version`;
    samples: {"prompt", "before", "after"}; set_aside: (event id, part, error) of rows that learning could not use; rungs:
    of the ladder, oldest first, this round's last; labelled: pairs that the reward model labelled.
    """

    opened: OpenRound
    ending: Ending
    finished_at: float
    curve: Sequence[Mapping[str, float]] = ()
    history: Sequence[Mapping[str, float]] = ()
    samples: Sequence[Mapping[str, str]] = ()
    set_aside: Sequence[tuple[str, str, str]] = ()
    rungs: Sequence[Mapping[str, Any]] = ()
    labelled: Sequence[LabelledPair] = ()


def name_report(number: int, checkpoint: str | None) -> str:
    """The file of a round's report: named by its checkpoint, or by the round that was stopped."""
    return f"{checkpoint or f'r-{number:06d}'}.html"


def name_figures(report: Path) -> Path:
    """Beside a report: what of it other pages draw, as JSON."""
    return report.with_suffix(".json")


def collect_figures(data: ReportData) -> dict[str, Any]:
    """The training's curve, and the samples that the report shows."""
    return {"curve": list(data.curve), "samples": list(data.samples[:MAX_SAMPLES])}


def render_report(data: ReportData) -> str:
    """The whole page."""
    title = f"Round {data.opened.number}"
    outcome = f"published {data.ending.checkpoint}" if data.ending.checkpoint else "stopped"
    parts = [
        f"<h1>{title} <small>{escape(data.opened.kind)}, {escape(outcome)}</small></h1>",
        f"<p>{escape(data.ending.reason)}</p>",
        _render_facts(data),
        _render_phases(data.ending.details.get("phases", {})),
        _render_plots(data),
        _render_reward(data.ending.details.get("reward_parts", [])),
        _render_ladder(data.rungs, data.ending.details.get("ladder", [])),
        _render_figures(data.ending.metrics),
        _render_samples(data.samples),
        _render_labelled(data.ending.details.get("labelled"), data.labelled),
        _render_set_aside(data.set_aside),
    ]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style></head>'
        f"<body>{''.join(parts)}</body></html>\n"
    )


def _render_facts(data: ReportData) -> str:
    details = data.ending.details
    facts: list[tuple[str, Any]] = [
        ("Began", format_time(data.opened.started_at)),
        ("Ended", format_time(data.finished_at)),
        ("Attempts", data.opened.attempts),
        ("Began from", f"{data.ending.start} ({details.get('parent', 'nothing')})"),
        ("Reference", details.get("reference") or "the base"),
        ("Rows", f"{details.get('num_new', 0):,} new, {details.get('num_replayed', 0):,} replayed"),
        ("Left out: frozen prompt", f"{details.get('num_frozen', 0):,}"),
        ("New rows left for the next round", f"{data.ending.num_left:,}"),
        ("Reward model", f"version {details.get('reward_version', 0)}"),
    ]
    return _render_table(("", ""), facts)


def _render_phases(phases: Mapping[str, float]) -> str:
    rows = [(name, f"{seconds:.1f} s") for name, seconds in phases.items()]
    return "<h2>Where the time went</h2>" + _render_table(("Phase", "Seconds"), rows) if rows else ""


def _render_plots(data: ReportData) -> str:
    names = sorted({name for point in data.curve for name in point} - {"share"})
    drawn = []
    for title, beginnings in CURVES:
        chosen = [name for name in names if name.startswith(beginnings)]
        lines = {name: [(100 * p["share"], p[name]) for p in data.curve if name in p] for name in chosen}
        drawn.append(draw_lines(title, lines, "% done"))
    drawn += [_draw_history(data.history), _draw_gains(data.rungs)]
    figures = "".join(drawn)
    return f"<h2>Curves</h2>{figures}" if figures else ""


def _draw_history(history: Sequence[Mapping[str, float]]) -> str:
    """What the reward model foresees."""
    names = sorted({name for point in history for name in point if name.startswith(("accuracy", "foreseen"))})
    lines = {name: [(p["version"], p[name]) for p in history if name in p] for name in names}
    return draw_lines("What the reward model foresees, by version", lines, "version")


def _draw_gains(rungs: Sequence[Mapping[str, Any]]) -> str:
    """What the reward model sees in each checkpoint, beside the auditor, which nothing is optimised against."""
    far = sorted((rung for rung in rungs if rung.get("kl", 0) > 0), key=lambda rung: rung["kl"])
    lines = {
        name: [(rung["kl"], rung["gains"][name]) for rung in far if name in rung["gains"]]
        for name in ("reward", "auditor")
    }
    return draw_lines("Gain over checkpoint 0, by reward model and auditor", lines, "KL to it, nats an answer")


def _render_reward(parts: Sequence[Mapping[str, Any]]) -> str:
    """What each part of the reward adds to an answer, before and after, on the gate's samples."""
    rows = [(p["name"], f"{p['weight']:g}", f"{p['before']:+.4g}", f"{p['after']:+.4g}") for p in parts]
    return (
        "<h2>The reward, part by part</h2>" + _render_table(("Part", "Weight", "Before", "After"), rows) if rows else ""
    )


def _render_ladder(rungs: Sequence[Mapping[str, Any]], sentences: Sequence[str]) -> str:
    """Every checkpoint beside checkpoint 0."""
    if not rungs:
        return ""
    names = sorted({name for rung in rungs for name in rung["frozen"]})
    rows = [
        (
            rung["checkpoint"],
            f"{rung['win_rate']['value']:.0%} ({rung['win_rate']['low']:.0%} to {rung['win_rate']['high']:.0%})",
            rung["judge"],
            *(f"{rung['frozen'][name]:.0%}" if name in rung["frozen"] else "" for name in names),
        )
        for rung in rungs
    ]
    said = "".join(f"<p>{escape(sentence)}</p>" for sentence in sentences)
    table = _render_table(("Checkpoint", "Wins", "Judged by the", *names), rows)
    return f"<h2>The ladder: beside {escape(str(rungs[-1]['first']))}</h2>{said}{table}"


def _render_figures(metrics: Mapping[str, float]) -> str:
    rows = [(name, f"{value:.4g}") for name, value in sorted(metrics.items()) if math.isfinite(value)]
    return "<h2>Figures</h2>" + _render_table(("Figure", "Value"), rows) if rows else ""


def _render_samples(samples: Sequence[Mapping[str, str]]) -> str:
    if not samples:
        return ""
    rows = [(each.get("prompt", ""), each.get("before", ""), each.get("after", "")) for each in samples[:MAX_SAMPLES]]
    return "<h2>Answers before and after</h2>" + _render_table(("Asked", "Before", "After"), rows, is_said=True)


def _render_labelled(details: Mapping[str, Any] | None, pairs: Sequence[LabelledPair]) -> str:
    """What the reward model labelled in place of people, with some of it."""
    if not details:
        return ""
    rows = [
        (
            flatten_content(each.pair.prompt.messages[-1].get("content")),
            each.pair.first.text,
            each.pair.second.text,
            f"{each.probability:.0%}",
        )
        for each in pairs[:MAX_SAMPLES]
    ]
    names = ("Asked", "Preferred", "Other", "A person would agree")
    table = _render_table(names, rows, is_said=True) if rows else ""
    return f"<h2>Labelled by the reward model</h2><p>{escape(describe_labelled(details))}</p>{table}"


def describe_labelled(details: Mapping[str, Any]) -> str:
    """One sentence on the pairs that the reward model labelled, by what is on a round's record."""
    if details["reason"]:
        return f"None: {details['reason']}."
    return (
        f"{details['num']:,} pairs of answers to {details['num_prompts']:,} prompts, agreed with by "
        f"{details['probability']:.0%} of people as far as it knows; {details['num_alike']:,} prompts had one answer, "
        f"of {details['num_unsure']:,} pairs it was unsure."
    )


def _render_set_aside(set_aside: Sequence[tuple[str, str, str]]) -> str:
    if not set_aside:
        return "<h2>Set aside</h2><p>Every row could be used.</p>"
    more = f"<p>{len(set_aside):,} rows could not be used; the first {MAX_SET_ASIDE} are shown.</p>"
    table = _render_table(("Event", "Part", "Why"), set_aside[:MAX_SET_ASIDE])
    return f"<h2>Set aside</h2>{more if len(set_aside) > MAX_SET_ASIDE else ''}{table}"


def _render_table(head: Sequence[str], rows: Iterable[Sequence[Any]], *, is_said: bool = False) -> str:
    cell = '<td class="said">' if is_said else "<td>"
    body = "".join("<tr>" + "".join(f"{cell}{escape(str(v))}</td>" for v in row) + "</tr>" for row in rows)
    names = "".join(f"<th>{escape(name)}</th>" for name in head) if any(head) else ""
    return f"<table>{f'<tr>{names}</tr>' if names else ''}{body}</table>"


def format_time(epoch_s: float) -> str:
    """`2026-01-31 12:00:00 UTC`."""
    return datetime.fromtimestamp(epoch_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
