"""Start a conversion in a process of its own.

The converters' libraries don't sit well together in one process (one forks while another has threads running), and a
crash in one of them must not take the pipeline along.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from edgewise import errors
from edgewise.deploy.convert.base import PARENT, Job, dump_job
from edgewise.errors import EdgewiseError, ModelError, RuntimeMissing

# What a conversion imports beyond edgewise's own dependencies, and the extra that installs it.
NEEDED = {
    "onnxruntime": (("onnxruntime",), ""),
    "openvino": (("openvino",), "openvino"),
    "litert": (("litert_torch", "ai_edge_quantizer", "ai_edge_litert"), "litert"),
    "tensorrt": ((), ""),
}
QUIET = {
    "LITERT_TORCH_SHOW_PROGRESS": "n",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TF_ENABLE_ONEDNN_OPTS": "0",
    "JAX_PLATFORMS": "cpu",
    "PYTHONHASHSEED": "0",  # the same bytes every time
    "PYTHONSAFEPATH": "1",  # a user's onnx.py in the current directory must not stand in for the real one
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
    folder = Path(tempfile.mkdtemp(prefix="edgewise-convert-"))
    log, request, answer = folder / "log.txt", folder / "job.json", folder / "result.json"
    request.write_text(dump_job(job), encoding="utf-8")
    command = [sys.executable, "-m", "edgewise.deploy.convert", str(request), str(answer)]
    # The child must find what this process finds: a user's own model may be on its path only.
    path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
    with log.open("wb") as output:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **QUIET, "PYTHONPATH": path, PARENT: str(os.getpid())},
            start_new_session=True,
        )
        try:
            code = child.wait(timeout=job.timeout_s)
        except subprocess.TimeoutExpired:
            raise ModelError(
                f"the conversion for {job.runtime} took longer than {job.timeout_s:g} s and was stopped",
                where=job.out.name,
                hint=f"its log: {log}",
            ) from None
        finally:  # also when this process is interrupted
            _stop(child)
    result = _read(answer)
    if result is None:
        raise ModelError(
            f"the conversion for {job.runtime} {_ended(code)}: {_last_line(log)}",
            where=job.out.name,
            hint=f"its log: {log}",
        )
    if "error" in result:
        kind = getattr(errors, result["error"], ModelError)
        if not (isinstance(kind, type) and issubclass(kind, EdgewiseError)):
            kind = ModelError
        hint = "; ".join(part for part in (result["hint"], f"its log: {log}") if part)
        raise kind(result["message"], where=result["where"], hint=hint)
    shutil.rmtree(folder, ignore_errors=True)
    return Path(result["path"])


def _read(answer: Path) -> dict[str, str] | None:
    """The child's answer; None where it gave none, or none that is whole."""
    try:
        result: dict[str, str] = json.loads(answer.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return result


def _stop(child: subprocess.Popen[bytes]) -> None:
    """End the child and whatever it started, which may outlive it."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _ended(code: int) -> str:
    if code >= 0:
        return f"failed with code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"was ended by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")


def _last_line(log: Path) -> str:
    """The line that says what went wrong: in Python's tracebacks, and in most logs, the last one at the margin."""
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    at_margin = [line for line in lines if not line[0].isspace()]
    return (at_margin or lines or ["it wrote no log"])[-1].strip()
