"""The files of the pages, read at start: what is served by name, and the console's pages, each put into one frame.

A page of the console is a noun: web/console/NAME.html is what stands in the frame, NAME.js what fills it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template

_FOLDER = Path(__file__).resolve().parent.parent / "web"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
CONSOLE_PAGES = ("overview", "rollout", "checkpoints", "learning", "feedback", "keys", "engines")
"""In the order of the navigation. The first one is at /console, every other at /console/NAME."""


@dataclass(frozen=True)
class WebFile:
    """One file of the pages, read at start."""

    content: bytes
    media_type: str
    etag: str


def load_web_files(folder: Path = _FOLDER) -> dict[str, WebFile]:
    """Read the pages' files by their path below the folder: the only names that are ever served."""
    return {
        path.relative_to(folder).as_posix(): make_file(path.read_bytes(), _TYPES[path.suffix])
        for path in sorted(folder.rglob("*"))
        if path.suffix in _TYPES
    }


def build_console_pages(files: dict[str, WebFile]) -> dict[str, WebFile]:
    """The console's pages, by address."""
    frame = Template(files["console/frame.html"].content.decode())
    pages = {}
    for name in CONSOLE_PAGES:
        content = files[f"console/{name}.html"].content.decode()
        whole = frame.substitute(
            title=escape(name.capitalize()), name=name, navigation=_list_links(name), content=content
        )
        pages[find_address(name)] = make_file(whole.encode(), _TYPES[".html"])
    return pages


def find_address(page: str) -> str:
    """Where a page of the console is."""
    return "/console" if page == CONSOLE_PAGES[0] else f"/console/{page}"


def make_file(content: bytes, media_type: str) -> WebFile:
    """A file with its etag."""
    return WebFile(content, media_type, f'"{hashlib.sha256(content).hexdigest()[:16]}"')


def _list_links(current: str) -> str:
    links = []
    for name in CONSOLE_PAGES:
        mark = ' aria-current="page"' if name == current else ""
        links.append(f'      <a href="{find_address(name)}"{mark}>{name.capitalize()}</a>')
    return "\n".join(links)
