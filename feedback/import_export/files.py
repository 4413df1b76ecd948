"""Files of rows: JSON lines, or Parquet with the extra `[parquet]`. A file is there whole or not at all.

The format is the name's ending: .jsonl (or .json) and .parquet. Parquet columns are strings, numbers, booleans, lists
and structs only, as Hugging Face datasets reads them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec

from feedback.errors import ImportExportError
from feedback.import_export.rows import Row

JSON_LINES = (".jsonl", ".json")
PARQUET = (".parquet",)
_GROUP_ROWS = 1000


def check_format(path: Path) -> None:
    """Raises ImportExportError if the name's ending is of no format, or its package is missing."""
    if path.suffix in PARQUET:
        _import_parquet()
    elif path.suffix not in JSON_LINES:
        raise ImportExportError(f"{path.name}: the ending must be one of {', '.join(JSON_LINES + PARQUET)}")


def write_rows(path: Path, kind: type[Row], rows: Iterable[Row]) -> int:
    """Write all rows, replacing the file at the end; return how many. Raises ImportExportError."""
    check_format(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        num_rows = (_write_parquet if path.suffix in PARQUET else _write_lines)(temporary, kind, rows)
        temporary.replace(path)
    except OSError as error:
        raise ImportExportError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return num_rows


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, columns) of every row; the place is for messages, such as `line 7`. Raises ImportExportError."""
    check_format(path)
    try:
        yield from (_read_parquet if path.suffix in PARQUET else _read_lines)(path)
    except OSError as error:
        raise ImportExportError(f"{path} cannot be read: {error.strerror or error}") from error


def _write_lines(path: Path, kind: type[Row], rows: Iterable[Row]) -> int:
    num_rows = 0
    with path.open("wb") as file:
        for row in rows:
            file.write(msgspec.json.encode(row) + b"\n")
            num_rows += 1
        _sync(file)
    return num_rows


def _read_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                yield f"line {number}", msgspec.json.decode(line, type=dict[str, Any])
            except (ValueError, RecursionError) as error:
                raise ImportExportError(f"line {number} is not a JSON object: {error}") from None


def _write_parquet(path: Path, kind: type[Row], rows: Iterable[Row]) -> int:
    parquet = _import_parquet()
    import pyarrow

    schema = describe_columns(kind)
    num_rows = 0
    left = iter(rows)
    with path.open("wb") as file:
        with parquet.ParquetWriter(file, schema, compression="zstd") as writer:
            while group := list(islice(left, _GROUP_ROWS)):
                try:
                    table = pyarrow.Table.from_pylist([msgspec.to_builtins(row) for row in group], schema)
                except (pyarrow.ArrowException, OverflowError) as error:
                    raise ImportExportError(f"rows after {num_rows} do not fit into Parquet: {error}") from error
                writer.write_table(table)
                num_rows += len(group)
        _sync(file)
    return num_rows


def _read_parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    parquet = _import_parquet()
    import pyarrow

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(_GROUP_ROWS):
                for columns in batch.to_pylist():
                    number += 1
                    yield f"row {number}", columns
    except pyarrow.ArrowInvalid as error:
        raise ImportExportError(f"{path} is no Parquet file: {error}") from error


def describe_columns(kind: type[msgspec.Struct]) -> Any:
    """The pyarrow schema of a row type."""
    import pyarrow

    info = msgspec.inspect.type_info(kind)
    assert isinstance(info, msgspec.inspect.StructType)
    return pyarrow.schema([pyarrow.field(field.name, _describe(field.type)) for field in info.fields])


def _describe(node: msgspec.inspect.Type) -> Any:
    import pyarrow

    if isinstance(node, msgspec.inspect.UnionType):  # of something and None
        [node] = [part for part in node.types if not isinstance(part, msgspec.inspect.NoneType)]
    match node:
        case msgspec.inspect.ListType():
            return pyarrow.list_(_describe(node.item_type))
        case msgspec.inspect.StructType():
            return pyarrow.struct([pyarrow.field(field.name, _describe(field.type)) for field in node.fields])
        case msgspec.inspect.IntType():
            return pyarrow.int64()
        case msgspec.inspect.FloatType():
            return pyarrow.float64()
        case msgspec.inspect.BoolType():
            return pyarrow.bool_()
        case msgspec.inspect.StrType() | msgspec.inspect.LiteralType():
            return pyarrow.string()
    raise TypeError(f"no column type for {node}")


def _import_parquet() -> ModuleType:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ImportExportError("Parquet needs pyarrow: pip install 'prefloop[parquet]'") from error
    module: ModuleType = pyarrow.parquet
    return module


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())
