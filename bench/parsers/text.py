"""Numbers out of tools' texts."""

from __future__ import annotations

import math
import re

from edgewise.errors import MeasureError

# No sign, no inf, no nan: a time that isn't one must not be read as one.
NUMBER = r"(\d{1,18}(?:\.\d{1,18})?(?:[eE][+-]?\d{1,3})?)"
LAST_LINES = 8


def number(text: str, where: str) -> float:
    """A finite number from 0.

    Raises:
        MeasureError: it is none.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not re.fullmatch(NUMBER, text.strip(), flags=re.ASCII) or not math.isfinite(value):
        raise MeasureError(f"expected a number from 0, got {text[:40]!r}", where=where)
    return value


def last_words(text: str) -> str:
    """The end of what a tool said, for an error."""
    lines = [line.strip()[:200] for line in text.strip().splitlines() if line.strip()][-LAST_LINES:]
    return "it last said:\n    " + "\n    ".join(lines) if lines else "it said nothing"
