"""Puts the plan of bench/scale into docs/scale.md, from the unit costs that are kept: run `make docs` after changing either.

A test compares them.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # bench is no installed package

from bench.scale.plan import Load, make_plan
from bench.scale.render import render_plan, render_units
from bench.scale.units import Assumed, read_measured

PAGE = Path(__file__).with_name("scale.md")
BEGIN, END = "<!-- computed by render_scale.py: {} -->", "<!-- end of {} -->"


def render_page(page: str) -> str:
    """The page with the tables of now. Raises ValueError if the marks are missing."""
    unit, assumed, load = read_measured(), Assumed(), Load()
    tables = {"plan": render_plan(make_plan(load, unit, assumed)), "units": render_units(unit, assumed, load)}
    for name, text in tables.items():
        before, mark, rest = page.partition(BEGIN.format(name))
        _, end, after = rest.partition(END.format(name))
        if not (mark and end):
            raise ValueError(f"{PAGE.name} has no place for the {name}")
        page = f"{before}{mark}\n\n{text}\n\n{end}{after}"
    return page


if __name__ == "__main__":
    PAGE.write_text(render_page(PAGE.read_text()))
