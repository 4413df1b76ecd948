"""Files: whole or not there, and problems that say where."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from feedback.errors import ImportExportError
from feedback.import_export import ROWS, make_rows
from feedback.import_export.files import read_rows, write_rows
from feedback.import_export.rows import Row
from tests.feedback.samples import make_choice, make_record


def rows(num: int) -> Iterator[Row]:
    return make_rows((make_record(number, make_choice()) for number in range(num)), "choices")


@pytest.mark.parametrize("name", ["x.jsonl", "x.parquet"])
def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path, name: str) -> None:
    def breaks() -> Iterator[Row]:
        yield from rows(3)
        raise KeyError

    path = tmp_path / name
    assert write_rows(path, ROWS["choices"], rows(2)) == 2
    with pytest.raises(KeyError):
        write_rows(path, ROWS["choices"], breaks())
    assert len(list(read_rows(path))) == 2
    assert [found.name for found in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["x.jsonl", "x.parquet"])
def test_many_rows_and_none_are_both_files(tmp_path: Path, name: str) -> None:
    assert write_rows(tmp_path / name, ROWS["choices"], rows(0)) == 0
    assert list(read_rows(tmp_path / name)) == []
    assert write_rows(tmp_path / name, ROWS["choices"], rows(1500)) == 1500  # more than one group
    places = [place for place, _ in read_rows(tmp_path / name)]
    assert len(places) == 1500 and places[-1].endswith(" 1500")


def test_a_bad_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    for text in ("[]", "{", "\udcff", "[" * 5000):
        path.write_bytes(b"{}\n\n" + text.encode("utf-8", "surrogateescape") + b"\n")
        with pytest.raises(ImportExportError, match="line 3"):
            list(read_rows(path))


def test_other_files_are_refused_in_plain_words(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR2")
    for name, words in (("x.csv", "ending"), ("x.parquet", "no Parquet"), ("missing.jsonl", "cannot be read")):
        with pytest.raises(ImportExportError, match=words):
            list(read_rows(tmp_path / name))
    with pytest.raises(ImportExportError, match="cannot be written"):
        write_rows(tmp_path / "no" / "x.jsonl", ROWS["choices"], rows(1))


def test_a_missing_package_is_named_with_its_extra(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "from pathlib import Path; from feedback.errors import ImportExportError\n"
        "from feedback.import_export.files import check_format\n"
        "check_format(Path('x.jsonl'))\n"
        "try: check_format(Path('x.parquet'))\n"
        "except ImportExportError as error: print(error)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "Parquet needs pyarrow: pip install 'prefloop[parquet]'\n", result.stderr
