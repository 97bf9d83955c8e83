"""Compare nets in a process of its own: a runtime that crashes or hangs there costs one comparison, and no more."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgewise.deploy.child import ask
from edgewise.errors import EdgewiseError
from edgewise.progress import Tick, silent


@dataclass(frozen=True)
class Pair:
    """Two nets to compare: files or folders, ``inputs`` an ``.npy`` (N, C, H, W) float32 or (N, L) int64; ``bfloat16``:
    the second is OpenVINO's file of a float32 net, run in less."""

    one: str
    other: str
    inputs: str
    bfloat16: bool = False


def compare_in_process(
    pairs: Mapping[str, Pair], *, threads: int, timeout_s: float, tick: Tick = silent
) -> dict[str, dict[str, Any]]:
    """``Comparison.to_json`` of every pair, by name; one that can't be compared has a ``note`` that says why.

    One process compares them all. Where it ends before the last, the pair it was at is left out, and another goes on.

    Args:
        pairs: by name.
        threads: of torch.
        timeout_s: seconds that one process may take.
        tick: told before each process.
    """
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="edgewise-inspect-") as folder:
        answers = {name: Path(folder) / f"{number}.json" for number, name in enumerate(pairs)}
        while left := [name for name in pairs if name not in found]:
            tick(len(found), len(pairs), left[0])
            asked = [{**asdict(pairs[name]), "answer": str(answers[name])} for name in left]
            question, why = json.dumps({"threads": threads, "pairs": asked}), "there was no answer"
            try:
                ask("edgewise.deploy.inspect", question, what="comparing layers", where=left[0], timeout_s=timeout_s)
            except EdgewiseError as error:
                why = error.message
            found |= {name: json.loads(answers[name].read_text()) for name in left if answers[name].exists()}
            stopped = next((name for name in left if name not in found), None)
            if stopped is not None:
                found[stopped] = nothing(why)
    return found


def nothing(why: str) -> dict[str, Any]:
    """A comparison that could not be made."""
    unknown = dict.fromkeys(("first_bad", "flips", "floor_db"))
    note = f"its layers can't be compared: {why}"
    return {**unknown, "n": 0, "rows": [], "why": "", "unmatched": [[], []], "note": note}


__all__ = ["Pair", "compare_in_process", "nothing"]
