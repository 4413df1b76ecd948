"""Files that are there whole or not at all."""

from pathlib import Path

import pytest

from feedback.durable import publish_directory, replacing, write_durably


def test_a_file_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_durably(path, b"1")
    write_durably(path, b"2")
    assert path.read_bytes() == b"2" and [each.name for each in tmp_path.iterdir()] == ["a.json"]


def test_a_block_that_fails_changes_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_durably(path, b"1")
    with pytest.raises(KeyboardInterrupt), replacing(path) as unfinished:
        unfinished.write_bytes(b"2")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"1" and [each.name for each in tmp_path.iterdir()] == ["a.json"]


def test_what_a_killed_writer_left_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "a.json.part").write_bytes(b"half of it, and longer")
    write_durably(tmp_path / "a.json", b"1")
    assert (tmp_path / "a.json").read_bytes() == b"1" and len([*tmp_path.iterdir()]) == 1


def test_content_is_durable_before_the_name_and_the_name_on_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, bool]] = []
    final = tmp_path / "final"
    monkeypatch.setattr("feedback.durable.fsync", lambda path: seen.append((path.name, final.exists())))
    write_durably(final, b"1")
    assert seen == [("final.part", False), (tmp_path.name, True)]
    final.unlink()
    seen.clear()
    (tmp_path / "made" / "part").mkdir(parents=True)
    (tmp_path / "made" / "part" / "file").write_bytes(b"1")
    publish_directory(tmp_path / "made", final)
    assert seen == [("part", False), ("file", False), ("made", False), (tmp_path.name, True)]
    assert (final / "part" / "file").read_bytes() == b"1"
