"""Start a conversion in a process of its own."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from edgewise.deploy.child import ask
from edgewise.deploy.convert.base import Job, dump_job
from edgewise.errors import RuntimeMissing

# What a conversion imports beyond edgewise's own dependencies, and the extra that installs it.
NEEDED = {
    "onnxruntime": (("onnxruntime",), ""),
    "openvino": (("openvino",), "openvino"),
    "litert": (("litert_torch", "ai_edge_quantizer", "ai_edge_litert"), "litert"),
    "tensorrt": ((), ""),
}


def check_installed(runtime: str) -> None:
    """Check that what a conversion for ``runtime`` needs can be imported.

    Raises:
        RuntimeMissing: naming what is missing and the extra that brings it.
    """
    modules, extra = NEEDED.get(runtime, ((), ""))
    absent = [name for name in modules if importlib.util.find_spec(name) is None]
    if absent:
        what = f"edgewise[{extra}]" if extra else absent[0]
        raise RuntimeMissing(
            f"converting for {runtime} needs {', '.join(absent)}", where=runtime, hint=f"pip install '{what}'"
        )


def convert_in_process(job: Job) -> Path:
    """Run the job in a new process and wait for it; the file that was made.

    A failed conversion's log stays on disk and is named in the error.

    Raises:
        RuntimeMissing: what it needs isn't installed; nothing was started.
        ModelError: it failed, crashed, or took longer than ``job.timeout_s``.
        ContractError: the runtime would run the file in float.
    """
    check_installed(job.runtime)
    what = f"the conversion for {job.runtime}"
    told = ask("edgewise.deploy.convert", dump_job(job), what=what, where=job.out.name, timeout_s=job.timeout_s)
    return Path(told["path"])
