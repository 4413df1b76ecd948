"""What a load of ten thousand requests a second and ten million choices a day needs: `python -m bench.scale`.

Measures the unit costs on this machine (two minutes; --no-measure takes those that are kept), then computes the plan. Prints it,
writes measured.json with --keep, and one JSON object last. What is assumed and not measured: units.py. `make docs` puts
the same into docs/scale.md.
"""

import argparse
import json
import shutil
import sys
from dataclasses import asdict, fields
from pathlib import Path

import httpx

from bench.gateway.loads import LoadFailed
from bench.gateway.servers import ServerFailed
from bench.gateway.tools import MissingTool
from bench.scale.measure import measure_units
from bench.scale.plan import Load, make_plan
from bench.scale.render import render_plan
from bench.scale.units import Assumed, read_measured, write_measured
from prefloop.servers.postgres import PostgresError


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog='make bench-scale ARGS="…"', description=__doc__)
    parser.add_argument("--state-dir", type=Path, default=Path("state"))
    parser.add_argument("--seconds", type=float, default=4.0, help="of each load")
    parser.add_argument("--no-measure", action="store_true", help="plan with the unit costs that are kept")
    parser.add_argument("--keep", action="store_true", help="keep the unit costs in measured.json")
    for field in fields(Load):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=float, default=field.default)
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    folder = (arguments.state_dir / "bench" / "scale").resolve()
    try:
        if arguments.no_measure:
            unit = read_measured()
        else:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            unit = measure_units(folder, arguments.seconds)
    except (MissingTool, ServerFailed, LoadFailed, PostgresError, httpx.HTTPError, OSError) as error:
        print(f"bench-scale: {error}", file=sys.stderr)
        return 1
    if arguments.keep:
        write_measured(unit)
    load = Load(**{field.name: getattr(arguments, field.name) for field in fields(Load)})
    plan = make_plan(load, unit, Assumed())
    print(render_plan(plan))
    table = {f"{row.part}: {row.what}": float(f"{row.value:.4g}") for row in plan.rows}
    limits = {name: round(per_s) for name, per_s in plan.single.items()}
    cost = {name: round(money) for name, money in plan.cost.items()}
    print(json.dumps({"load": asdict(load), "plan": table, "full_at_requests_per_s": limits, "cost_a_month": cost}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
