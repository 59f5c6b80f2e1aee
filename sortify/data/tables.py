"""Reader of tables with one sample per line: CSV, TSV and JSON lines, as one file or as train and test in a folder."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sortify.data.images import TEST_FOLDERS
from sortify.errors import DataError, first_line

ENDINGS = (".csv", ".tsv", ".jsonl")
LONGEST_FIELD = 2**27
"""Characters of a field; the csv module stops at 2**17 by itself, which long texts exceed."""


def table_files(path: Path) -> tuple[Path, Path | None] | None:
    """Return the table to train on and, in a folder, the one to test on; None where there is no table."""
    if path.is_file():
        return (path, None) if path.suffix in ENDINGS else None
    train = next((path / f"train{ending}" for ending in ENDINGS if (path / f"train{ending}").is_file()), None)
    if train is None:
        return None
    names = [f"{name}{train.suffix}" for name in (*TEST_FOLDERS, "dev")]
    test = next((path / name for name in names if (path / name).is_file()), None)
    if test is None:
        raise DataError(f"{path}: expected test{train.suffix} (or validation) beside {train.name}")
    return train, test


def read_columns(path: Path) -> dict[str, list[Any]]:
    """Return a table's columns by name; columns of text that holds only numbers become numbers.

    Raises:
        DataError: the file is no such table, or rows have different columns.
    """
    try:
        rows = _json_rows(path) if path.suffix == ".jsonl" else _csv_rows(path)
    except (UnicodeDecodeError, csv.Error, ValueError) as error:
        raise DataError(f"{path}: not a readable table ({first_line(error)})") from None
    if not rows:
        raise DataError(f"{path}: there are no rows; expected a head and one sample per line")
    names = list(rows[0])
    for number, row in enumerate(rows, 1):
        if list(row) != names or None in row or None in row.values():
            raise DataError(
                f"{path}: row {number} has other columns than the head; expected {', '.join(filter(None, names))}"
            )
    return {name: _numbers([row[name] for row in rows]) for name in names}


def _json_rows(path: Path) -> Sequence[Mapping[str, Any]]:
    with path.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("a line is no JSON object")
    names = list(rows[0]) if rows else []
    return [{name: row.get(name) for name in (*names, *(other for other in row if other not in names))} for row in rows]


def _csv_rows(path: Path) -> Sequence[Mapping[str, Any]]:
    csv.field_size_limit(LONGEST_FIELD)
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))


def _numbers(values: list[Any]) -> list[Any]:
    kinds: tuple[Callable[[Any], Any], ...] = (int, float)
    for kind in kinds:
        try:
            return [kind(value) if isinstance(value, str) else value for value in values]
        except ValueError:
            continue
    return values
