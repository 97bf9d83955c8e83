"""``python -m edgewise.deploy.inspect QUESTION.json ANSWER.json``: compare pairs of nets, in this process. Each pair's
answer is a file of its own, written when it is there."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from edgewise.deploy.child import answer, die_with_parent, write_whole
from edgewise.deploy.inspect.compare import compare_layers
from edgewise.deploy.inspect.run import Pair, nothing


def compared(pair: Pair) -> dict[str, Any]:
    """The comparison as plain data; a runtime's exception is in its ``note``."""
    try:
        inputs = np.load(pair.inputs)
        if pair.bfloat16:
            from edgewise.deploy.inspect.ov_probe import OvProbe

            return compare_layers(Path(pair.one), OvProbe(Path(pair.other), bfloat16=True), inputs).to_json()
        return compare_layers(Path(pair.one), Path(pair.other), inputs).to_json()
    except Exception as error:  # whatever a runtime raises, the other pairs are compared
        return nothing(next((line for line in str(error).splitlines() if line.strip()), type(error).__name__))


def main(arguments: list[str]) -> int:
    """Compare what the question names; the exit code."""
    if len(arguments) != 2:
        print("usage: python -m edgewise.deploy.inspect QUESTION.json ANSWER.json", file=sys.stderr)
        return 2
    asked = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))

    def work() -> dict[str, Any]:
        import torch

        torch.set_num_threads(asked["threads"])
        for entry in asked["pairs"]:
            place = Path(entry.pop("answer"))
            write_whole(place, json.dumps(compared(Pair(**entry)), allow_nan=False))
        return {}

    return answer(Path(arguments[1]), work)


if __name__ == "__main__":
    die_with_parent()
    sys.exit(main(sys.argv[1:]))
