"""Writes docs/schemas/*.json from the events: run `make docs` after changing one. A test compares both."""

from pathlib import Path

from feedback.event_schemas import render_schemas

FOLDER = Path(__file__).parent / "schemas"


def write_schemas(folder: Path) -> None:
    """One file for each event type, and no other."""
    folder.mkdir(exist_ok=True)
    schemas = render_schemas()
    for path in folder.glob("*.json"):
        if path.stem not in schemas:
            path.unlink()
    for name, text in schemas.items():
        (folder / f"{name}.json").write_text(text)


if __name__ == "__main__":
    write_schemas(FOLDER)
