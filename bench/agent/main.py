"""``python3 agent.pyz COMMAND``: what the agent can be asked. JSON Lines on stdout, ``{"type": "end", "rc": N}`` last.

Commands: probe, runtimes, run, sample, put, get, clean; and worker, which ``run`` starts. Logs go to stderr. Python >=
3.8; only a worker needs numpy and a runtime.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from typing import IO, Any, Dict, List, Optional

from edgewise.bench.agent import child, lease, store

RC_DEVICE = 5
LONGEST_HEADER = 1 << 20
RUNTIME_LIMIT_S = 120.0


def main(arguments: Optional[List[str]] = None) -> int:
    """Do one command; the exit status."""
    parser = argparse.ArgumentParser(prog="agent.pyz", description="edgewise on a device; see docs/devices.md")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="measure: requests on stdin, replies on stdout")
    run.add_argument("--who", default="somebody", help="shown to those who find the device in use")
    run.add_argument("--limit-s", type=float, default=86400.0)
    sample = commands.add_parser("sample", help="telemetry until stdin ends")
    sample.add_argument("--hz", default="10")
    get = commands.add_parser("get", help="give a file of a session, and drop it")
    get.add_argument("path")
    clean = commands.add_parser("clean", help="remove pushed files, those unused longest first")
    clean.add_argument("--quota", type=int, default=0, help="bytes that may stay")
    runtimes = commands.add_parser("runtimes", help="which of these runtimes work here")
    runtimes.add_argument("names", nargs="*", default=["onnxruntime", "openvino", "litert", "tensorrt"])
    for name, text in (
        ("probe", "what this device is"),
        ("put", "take files, announced by a line of JSON"),
        ("worker", "run one file; started by run"),
    ):
        commands.add_parser(name, help=text)
    asked = parser.parse_args(arguments)
    if asked.command == "worker":
        return _worker()
    if asked.command == "sample":
        from edgewise.bench.agent import sample as sampling

        return sampling.main(["--hz", asked.hz])
    to = _private_stdout()
    try:
        rc = COMMANDS[asked.command](asked, to)
    except BrokenPipeError:
        rc = 1
    except (lease.Held, store.Refused, OSError, ValueError) as error:
        rc = RC_DEVICE
        told = {"type": "error", "kind": type(error).__name__, "message": str(error), "errno": _number(error)}
        with contextlib.suppress(OSError):
            say(to, told)
    with contextlib.suppress(OSError):  # nobody may be left to read it
        say(to, {"type": "end", "rc": rc})
    with contextlib.suppress(OSError):
        to.close()
    return rc


def say(to: IO[bytes], reply: Dict[str, Any]) -> None:
    """One line of JSON."""
    to.write(json.dumps(reply, default=str).encode() + b"\n")
    to.flush()


def command() -> List[str]:
    """How this agent starts itself again."""
    return [sys.executable, os.path.realpath(sys.argv[0])]


def _number(error: BaseException) -> Optional[int]:
    return error.errno if isinstance(error, OSError) else None


def _private_stdout() -> IO[bytes]:
    """The real stdout; what anything else prints goes to stderr."""
    sys.stdout.flush()
    private = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return os.fdopen(private, "wb")


def _worker() -> int:
    try:
        from edgewise.bench.agent import worker
    except ImportError as error:
        sys.stdin.readline()
        message = "%s can't import numpy: %s" % (sys.executable, error)
        say(sys.stdout.buffer, {"type": "error", "kind": "DeviceError", "message": message})
        return 1
    return worker.main()


def _run(asked: argparse.Namespace, to: IO[bytes]) -> int:
    from edgewise.bench.agent import supervise

    root = store.home()
    return supervise.run(command(), asked.who, asked.limit_s, root, to, lease.take(root, asked.who))


def _probe(asked: argparse.Namespace, to: IO[bytes]) -> int:
    from edgewise.bench.agent import probe

    say(to, dict(probe.probe(), type="probe"))
    return 0


def _runtimes(asked: argparse.Namespace, to: IO[bytes]) -> int:
    """Each runtime is imported in a process of its own: some end their process where the CPU is too old."""
    found = {}  # type: Dict[str, Optional[str]]
    for name in asked.names:
        request = json.dumps({"do": "import", "runtime": name}) + "\n"
        environment = dict(os.environ, **child.environment(1, os.getpid()))
        try:
            done = subprocess.run(
                [*command(), "worker"],
                input=request.encode(),
                capture_output=True,
                timeout=RUNTIME_LIMIT_S,
                env=environment,
            )
            reply = json.loads(done.stdout.split(b"\n")[0] or b"{}")
        except (ValueError, subprocess.TimeoutExpired):
            reply = {}
        if reply.get("type") == "import":
            found[name] = None
        else:
            found[name] = str(reply.get("message") or "it can't be imported: its process died or hangs")
    say(to, {"type": "runtimes", "runtimes": found})
    return 0


def _put(asked: argparse.Namespace, to: IO[bytes]) -> int:
    root, source = store.home(), sys.stdin.buffer
    files = json.loads(source.readline(LONGEST_HEADER))["files"]
    path = store.have(root, files)
    if path is None:
        say(to, {"type": "send"})
        path = store.put(root, files, source, lease.since(root))
    say(to, {"type": "put", "path": path})
    return 0


def _get(asked: argparse.Namespace, to: IO[bytes]) -> int:
    store.give(store.home(), asked.path, lambda header: say(to, header), to)
    return 0


def _clean(asked: argparse.Namespace, to: IO[bytes]) -> int:
    root = store.home()
    held = lease.take(root, "clean")
    try:
        store.session(root)
        say(to, dict(store.clean(root, asked.quota, time.time()), type="clean"))
    finally:
        held.drop()
    return 0


COMMANDS = {"run": _run, "probe": _probe, "runtimes": _runtimes, "put": _put, "get": _get, "clean": _clean}


if __name__ == "__main__":
    sys.exit(main())
