"""The plan and its unit costs as Markdown tables, for the terminal and for docs/scale.md."""

from dataclasses import fields

from bench.scale.plan import Load, Plan
from bench.scale.units import Assumed, Measured

_MEASURED = {
    "request_cpu_us": ("a request to the gateway, answered whole", "us of a core"),
    "event_cpu_us": ("an event of a stream that arrives by itself", "us of a core"),
    "gateway_rss_mb": ("a gateway process", "MB"),
    "open_stream_kb": ("an open stream", "kB"),
    "completion_bytes": ("a recorded answer (half whole, half streams of 64 events, by time)", "bytes"),
    "comparison_cpu_us": ("storing a comparison, 20 a commit", "us of a core"),
    "comparison_bytes": ("a comparison in PostgreSQL, with indexes", "bytes"),
    "choice_cpu_us": ("a choice in the gateway, its relay included", "us of a core"),
    "choice_bytes": ("a choice in PostgreSQL, with indexes", "bytes"),
    "choices_per_s": ("durable choices of one gateway and PostgreSQL beside it, 64 clients", "/s"),
    "relay_cpu_us": ("moving an event from the outbox to the log", "us of a core"),
    "event_bytes": ("an event of a choice", "bytes"),
    "intake_cpu_us": ("taking an event into the trainer's inbox", "us of a core"),
    "inbox_bytes": ("a row of the inbox, with indexes (SQLite)", "bytes"),
}


def show_number(value: float) -> str:
    """Three digits that count, with separators."""
    if value >= 1000:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:.3g}"


def render_plan(plan: Plan) -> str:
    """Every quantity with what it is made of, what fills first, and the cost."""
    lines = ["| part | what | value | made of |", "|---|---|---|---|"]
    lines += [f"| {r.part} | {r.what} | {show_number(r.value)} {r.unit} | {r.of} |" for r in plan.rows]
    lines += ["", "| one of these | is full at so many requests a second |", "|---|---|"]
    lines += [f"| {name} | {show_number(per_s)} |" for name, per_s in plan.single.items()]
    lines += ["", "| cost a month | $ |", "|---|---|"]
    lines += [f"| {name} | {show_number(money)} |" for name, money in plan.cost.items()]
    return "\n".join(lines)


def render_units(unit: Measured, assumed: Assumed, load: Load) -> str:
    """What was measured, what is assumed, and the load."""
    lines = [f"Measured on {unit.machine}:", "", "| one | costs |", "|---|---|"]
    lines += [f"| {what} | {show_number(getattr(unit, name))} {kind} |" for name, (what, kind) in _MEASURED.items()]
    lines += ["", "Assumed, not measured:", "", "| figure | value |", "|---|---|"]
    lines += [f"| `{field.name}` | {show_number(getattr(assumed, field.name))} |" for field in fields(Assumed)]
    lines += ["", "The load:", "", "| figure | value |", "|---|---|"]
    lines += [f"| `{field.name}` | {show_number(getattr(load, field.name))} |" for field in fields(Load)]
    return "\n".join(lines)
