"""Ask a question in a process of its own: runtimes and converters crash, hang, and don't sit well together in one
process (one forks while another has threads running). What they do must not take the pipeline along.

The parent calls :func:`ask`; the child's module begins with :func:`die_with_parent` and ends with :func:`answer`.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from edgewise import errors
from edgewise.errors import EdgewiseError, ModelError

PARENT = "EDGEWISE_PARENT"  # environment: the process that waits for the answer
QUIET = {
    "LITERT_TORCH_SHOW_PROGRESS": "n",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TF_ENABLE_ONEDNN_OPTS": "0",
    "JAX_PLATFORMS": "cpu",
    "PYTHONHASHSEED": "0",  # the same bytes every time
    "PYTHONSAFEPATH": "1",  # a user's onnx.py in the current directory must not stand in for the real one
}


def ask(module: str, question: str, *, what: str, where: str, timeout_s: float) -> dict[str, Any]:
    """Run ``python -m module QUESTION.json ANSWER.json`` and wait for its answer.

    The log of one that failed stays on disk and is named in the error.

    Args:
        module: to run.
        question: its JSON.
        what: "the conversion for litert", for messages.
        where: the file it is about, for messages.
        timeout_s: seconds it may take.

    Raises:
        ModelError: it crashed, took longer than ``timeout_s``, or gave no whole answer.
        EdgewiseError: the one that the child answered with.
    """
    folder = Path(tempfile.mkdtemp(prefix="edgewise-"))
    log, request, reply = folder / "log.txt", folder / "question.json", folder / "answer.json"
    request.write_text(question, encoding="utf-8")
    # The child must find what this process finds: a user's own model may be on its path only.
    path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
    with log.open("wb") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", module, str(request), str(reply)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **QUIET, "PYTHONPATH": path, PARENT: str(os.getpid())},
            start_new_session=True,
        )
        try:
            code = child.wait(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise ModelError(
                f"{what} took longer than {timeout_s:g} s and was stopped", where=where, hint=f"its log: {log}"
            ) from None
        finally:  # also when this process is interrupted
            _stop(child)
    result = _read(reply)
    if result is None:
        raise ModelError(f"{what} {_ended(code)}: {_last_line(log)}", where=where, hint=f"its log: {log}")
    if "error" in result:
        kind = getattr(errors, result["error"], ModelError)
        if not (isinstance(kind, type) and issubclass(kind, EdgewiseError)):
            kind = ModelError
        hint = "; ".join(part for part in (result["hint"], f"its log: {log}") if part)
        raise kind(result["message"], where=result["where"], hint=hint)
    shutil.rmtree(folder, ignore_errors=True)
    return result


def answer(path: Path | None, work: Callable[[], dict[str, Any]]) -> int:
    """In the child: do the work, write what it gives or the error that stopped it to ``path``; the exit code."""
    try:
        result, code = work(), 0
    except OSError as error:
        result, code = {"error": "ModelError", "message": str(error), "where": "", "hint": ""}, 2
        print(error, file=sys.stderr)
    except EdgewiseError as error:
        result = {"error": type(error).__name__, "message": error.message, "where": error.where, "hint": error.hint}
        code = error.exit_code
        print(error, file=sys.stderr)
    if path is not None:
        write_whole(path, json.dumps(result))
    return code


def write_whole(path: Path, text: str) -> None:
    """Write a file that is whole or isn't there."""
    beside = path.with_name(path.name + ".part")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def die_with_parent() -> None:
    """On Linux, end when the process that waits for the answer is killed. Started by hand, nobody particular does."""
    parent = os.environ.pop(PARENT, "")
    if sys.platform == "linux" and parent:
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
        if str(os.getppid()) != parent:  # it went before the line above
            sys.exit("the process that wanted this is gone")


def _read(path: Path) -> dict[str, Any] | None:
    """The child's answer; None where it gave none, or none that is whole."""
    try:
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
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
