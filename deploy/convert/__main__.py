"""``python -m edgewise.deploy.convert JOB.json [RESULT.json]``: make one file, in this process.

The job is what ``base.dump_job`` writes. The result says which file was made, or which error stopped it.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

from edgewise.deploy.child import answer, die_with_parent
from edgewise.deploy.convert.base import Job, parse_job
from edgewise.errors import ModelError

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


def main(arguments: list[str]) -> int:
    """Run one job; the exit code."""
    if len(arguments) not in (1, 2):
        print("usage: python -m edgewise.deploy.convert JOB.json [RESULT.json]", file=sys.stderr)
        return 2

    def work() -> dict[str, str]:
        made = convert(parse_job(Path(arguments[0]).read_text(encoding="utf-8")))
        print(made)
        return {"path": str(made)}

    return answer(Path(arguments[1]) if len(arguments) == 2 else None, work)


if __name__ == "__main__":
    die_with_parent()
    sys.exit(main(sys.argv[1:]))
