"""``python -m edgewise.deploy.convert JOB.json [RESULT.json]``: make one file, in this process.

The job is what ``base.dump_job`` writes. The result says which file was made, or which error stopped it.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from importlib import import_module
from pathlib import Path

from edgewise.deploy.convert.base import PARENT, Job, parse_job
from edgewise.errors import EdgewiseError, ModelError

CONVERTERS = {
    "onnxruntime": "edgewise.deploy.convert.ort",
    "openvino": "edgewise.deploy.convert.ov",
    "litert": "edgewise.deploy.convert.litert",
    "tensorrt": "edgewise.deploy.convert.trt",
}


def convert(job: Job) -> Path:
    """Make the job's file, in this process.

    Raises:
        ModelError, ContractError: see the converters.
    """
    if job.runtime not in CONVERTERS:
        raise ModelError(f"no converter for {job.runtime!r}; there are {', '.join(CONVERTERS)}")
    path: Path = import_module(CONVERTERS[job.runtime]).convert(job.source, job.precision, job.out)
    return path


def _die_with_parent() -> None:
    """On Linux, end when the process that waits for the file is killed. Started by hand, nobody in particular does."""
    parent = os.environ.pop(PARENT, "")
    if sys.platform == "linux" and parent:
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
        if str(os.getppid()) != parent:  # it went before the line above
            sys.exit("the process that wanted this file is gone")


def main(arguments: list[str]) -> int:
    """Run one job; the exit code."""
    if len(arguments) not in (1, 2):
        print("usage: python -m edgewise.deploy.convert JOB.json [RESULT.json]", file=sys.stderr)
        return 2
    try:
        made = convert(parse_job(Path(arguments[0]).read_text(encoding="utf-8")))
        result, code = {"path": str(made)}, 0
        print(made)
    except OSError as error:
        result, code = {"error": "ModelError", "message": str(error), "where": "", "hint": ""}, 2
        print(error, file=sys.stderr)
    except EdgewiseError as error:
        result = {"error": type(error).__name__, "message": error.message, "where": error.where, "hint": error.hint}
        code = error.exit_code
        print(error, file=sys.stderr)
    if len(arguments) == 2:
        answer = Path(arguments[1])
        beside = answer.with_name(answer.name + ".part")  # an answer is whole or isn't there
        beside.write_text(json.dumps(result), encoding="utf-8")
        beside.replace(answer)
    return code


if __name__ == "__main__":
    _die_with_parent()
    sys.exit(main(sys.argv[1:]))
