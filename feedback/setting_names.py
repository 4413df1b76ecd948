"""The names of every process's settings, and what is said of a name that none of them has.

All processes read one file and one environment, so each knows the names of the others: setting_names.json, which
`make docs` writes. Does not look at values. Variables that are no settings (PREFLOOP_KEY, what Kubernetes adds for its
services) pass, unless they look like a misspelt setting.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

Names = dict[str, Any]  # the names of a section, each with Names of its own, or None for a single setting

PATH = Path(__file__).with_name("setting_names.json")
PREFIX = "PREFLOOP_"
# Read by commands, tests and the environment of a start; no settings, though some look like one.
OTHER_VARIABLES = {"CONFIG", "KEY", "API_KEY", "GATEWAY_URL", "TRAINER_URL", "URL", "CACHE_DIR", "STARTED_AT"}
_SERVICE_LINK = re.compile(r"(\w+_)?SERVICE_(HOST|PORT(_\w+)?)|(\w+_)?PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?")
_MISSPELT = 0.85  # difflib's ratio from which a variable is taken for a setting


@cache
def load_names() -> Names:
    """The names of all processes' settings."""
    return dict(json.loads(PATH.read_text()))


def list_names(model: type[BaseModel]) -> Names:
    """The names of a model's fields; a list of models has the names of its rows."""
    names: Names = {}
    for name, info in model.model_fields.items():
        types = (info.annotation, *get_args(info.annotation))
        section = next((kind for kind in types if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
        names[name] = None if section is None else list_names(section)
    return names


def merge_names(first: Names, second: Names) -> Names:
    """The names of both."""
    merged = {**first, **second}
    for name in first.keys() & second.keys():
        if first[name] and second[name]:
            merged[name] = merge_names(first[name], second[name])
    return merged


def find_unknown(given: Mapping[str, Any], known: Names) -> str | None:
    """What is wrong with the first name that no process has, in words; None if there is none."""
    for path, value, names in _walk(given, known):
        if names is _UNKNOWN:
            is_section = isinstance(value, Mapping)
            nearest = _find_nearest(path, known, is_section=is_section)
            quoted = [f"[{name}]" if is_section else name for name in (".".join(path), nearest)]
            return f"unknown {'section' if is_section else 'setting'} {quoted[0]}: did you mean {quoted[1]}?"
        if names is not None and not isinstance(value, Mapping | list | BaseModel):
            return f"{'.'.join(path)} must be a section"
    return None


def find_unknown_variable(environ: Mapping[str, str], known: Names) -> str | None:
    """The same of the environment: of names with `__`, which only settings have, and of what is nearly a setting."""
    settings = {"__".join(path).upper() for path in _list_paths(known)}
    joined = {name.replace("__", "_"): name for name in settings}
    for variable, value in environ.items():
        name = variable.upper().removeprefix(PREFIX)
        if not variable.upper().startswith(PREFIX) or name in OTHER_VARIABLES or _is_service_link(name, value):
            continue
        if name in settings:
            if unknown := _find_unknown_in_json(name, value, known):
                return f"{variable}: {unknown}"
            continue
        near = [joined[found] for found in difflib.get_close_matches(name.replace("__", "_"), joined, 1, _MISSPELT)]
        if not near and "__" in name:
            near = [_find_nearest(tuple(name.lower().split("__")), known).replace(".", "__").upper()]
        if near:
            return f"{variable} is no setting: did you mean {PREFIX}{near[0]}?"
    return None


_UNKNOWN: Names = {}


def _walk(given: Mapping[str, Any], known: Names, path: tuple[str, ...] = ()) -> Iterator[tuple[Any, Any, Any]]:
    """Every name that is given: its path, its value, and the names below it (None at a single setting)."""
    for name, value in given.items():
        names = known.get(name, _UNKNOWN)
        yield (*path, name), value, names
        for row in value if isinstance(value, list) else [value]:
            if names and isinstance(row, Mapping):
                yield from _walk(row, names, (*path, name))


def _list_paths(known: Names, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, names in known.items():
        yield (*path, name)
        if names:
            yield from _list_paths(names, (*path, name))


def _find_nearest(path: tuple[str, ...], known: Names, *, is_section: bool = False) -> str:
    """The dotted name most like this one: the same key in another section, else a like one, its neighbours first."""
    paths = [found for found in _list_paths(known) if not is_section or _dig(known, found) is not None]
    same = [found for found in paths if found[-1] == path[-1]]
    neighbours = [found for found in paths if found[:-1] == path[:-1]]
    for candidates, cutoff in ((same, 0.0), (neighbours, 0.6), (paths, 0.0)):
        if nearest := _match(path, candidates, cutoff):
            return nearest
    raise AssertionError("there are settings")


def _match(path: tuple[str, ...], candidates: Iterable[tuple[str, ...]], cutoff: float) -> str | None:
    found = difflib.get_close_matches(".".join(path), [".".join(each) for each in candidates], 1, cutoff)
    return found[0] if found else None


def _dig(known: Names, path: tuple[str, ...]) -> Names | None:
    for name in path[:-1]:
        known = known[name]
    return known[path[-1]]  # type: ignore[no-any-return]


def _find_unknown_in_json(name: str, value: str, known: Names) -> str | None:
    """A whole section may be given as one variable's JSON."""
    path = tuple(name.lower().split("__"))
    names = _dig(known, path)
    if names is None:
        return None
    try:
        given = json.loads(value)
    except ValueError:
        return "a section's value must be JSON"
    for part in reversed(path):
        given = {part: given}
    return find_unknown(given, known)


def _is_service_link(name: str, value: str) -> bool:
    return _SERVICE_LINK.fullmatch(name) is not None or re.match(r"(tcp|udp|sctp)://", value) is not None
