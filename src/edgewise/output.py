"""What results look like on stdout: JSON for machines, tables for people, plain columns in a pipe."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any

COLOURS = {"PASS": "green", "FAIL": "red", "INVALID": "red", "INCONCLUSIVE": "yellow", "yes": "green", "no": "yellow"}


@contextmanager
def stdout_for_results() -> Iterator[None]:
    """While it lasts whatever libraries print, from Python or C, goes to stderr."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def print_json(value: Any) -> None:
    """One JSON value on stdout."""
    print(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def one_line(value: object) -> str:
    """``value`` as text that stays on its line: what a name holds can't begin a line of its own, such as a command to
    the log of a continuous integration."""
    return "".join(char if char.isprintable() else " " for char in str(value))


def print_table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table on a terminal, aligned columns elsewhere."""
    text = [["" if cell is None else one_line(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(headers), *text]) for i in range(len(headers))]
    # A table that is wider than the terminal would be cut to pieces; plain columns only wrap.
    if not sys.stdout.isatty() or sum(widths) + 3 * len(widths) + 1 > shutil.get_terminal_size().columns:
        for row in [list(headers), *text]:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*headers)
    for row in text:
        table.add_row(*(Text(cell, style=COLOURS.get(cell, "")) for cell in row))
    Console(highlight=False).print(table)
