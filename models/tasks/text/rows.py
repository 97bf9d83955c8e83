"""Rows of a text file with named columns, each with its line, so that every mistake has a place. Torch-free."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgewise.errors import DataError


@dataclass(frozen=True)
class Rows:
    """Columns of one file: ``columns[name]`` has a cell a row, ``lines`` where in the file each row stands."""

    path: Path
    columns: dict[str, list[str]]
    lines: Sequence[int]

    def column(self, name: str) -> list[str]:
        """The cells of a column.

        Raises:
            DataError: there is no such column.
        """
        if name not in self.columns:
            raise DataError(
                f"no column {name!r} in the first line, but: {', '.join(map(repr, self.columns))}",
                where=str(self.path),
                hint="name its columns in task.text and task.label",
            )
        return self.columns[name]

    def where(self, row: int) -> str:
        """``file:line`` of a row."""
        return f"{self.path}:{self.lines[row]}"


def read_text(path: Path) -> str:
    """A whole file of UTF-8, with or without a byte order mark, any kind of line ends made ``\\n``.

    Raises:
        DataError: it can't be read, or is not UTF-8.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DataError("no such file", where=str(path), hint="check the path; it is relative to the recipe") from None
    except OSError as cause:
        raise DataError(f"can't be read: {cause.strerror or cause}", where=str(path)) from cause
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as cause:
        line = data.count(b"\n", 0, cause.start) + 1
        raise DataError(
            f"not UTF-8: byte 0x{data[cause.start]:02x}",
            where=f"{path}:{line}",
            hint="write the file as UTF-8; iconv -f latin1 -t utf-8 does, if it is Latin-1",
        ) from cause
    if "\0" in text:
        raise DataError("a zero byte: not a text", where=f"{path}:{text.count(chr(10), 0, text.index(chr(0))) + 1}")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_rows(path: Path, unnamed: str | None = None) -> Rows:
    """A ``.csv`` (commas; quotes around cells, as spreadsheets write them), else tabs, where a quote is a letter like
    any other. The first line names the columns. With ``unnamed``, a ``.txt`` has a text on each line, a column of that
    name.

    Raises:
        DataError: it can't be read, has no rows, or a row has another number of cells than there are columns.
    """
    text = read_text(path)
    if path.suffix.lower() == ".txt" and unnamed is not None:
        lines = text.rstrip("\n").split("\n") if text.strip() else []
        return _checked(path, [unnamed], [[line] for line in lines], range(1, len(lines) + 1))
    comma = path.suffix.lower() == ".csv"
    numbered = list(_csv(path, text) if comma else _tsv(text))
    if not numbered:
        raise DataError("the file is empty", where=str(path), hint="the first line names the columns")
    _, names = numbered[0]
    if len(set(names)) != len(names):
        raise DataError(f"two columns have the same name: {', '.join(map(repr, names))}", where=f"{path}:1")
    between = "a comma" if comma else "a tab"
    for line, cells in numbered[1:]:
        if len(cells) != len(names):
            raise DataError(
                f"expected {len(names)} cells with {between} between them, as the first line has, got {len(cells)}",
                where=f"{path}:{line}",
                hint=f"is {between} missing, or one inside a text?",
            )
    return _checked(path, names, [cells for _, cells in numbered[1:]], [line for line, _ in numbered[1:]])


def _checked(path: Path, names: list[str], rows: list[list[str]], lines: Sequence[int]) -> Rows:
    if not rows:
        raise DataError("the file has no samples", where=str(path))
    return Rows(path, {name: [row[place] for row in rows] for place, name in enumerate(names)}, lines)


def _tsv(text: str) -> Iterator[tuple[int, list[str]]]:
    # Not str.splitlines: texts hold characters that it takes for line ends, such as U+2028.
    for line, content in enumerate(text.rstrip("\n").split("\n") if text.strip() else [], 1):
        yield line, content.split("\t")


def _csv(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(_lines(text), strict=True)
    start = 1
    try:
        for cells in reader:
            if cells:
                yield start, cells
            start = reader.line_num + 1
    except csv.Error as cause:
        raise DataError(
            f"quotes that don't match: {cause}",
            where=f"{path}:{start}",
            hint='a quote inside a quoted cell is written twice: ""',
        ) from cause


def _lines(text: str) -> Iterator[str]:
    for line in text.rstrip("\n").split("\n"):
        yield line + "\n"
