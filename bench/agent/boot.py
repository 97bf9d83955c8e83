"""Bring the agent to a device: ``python3 -c <this text> SHA256 SIZE`` says where it is, and takes it if it isn't there.

The only code that runs there before the agent does. It has to be read by any Python 3, to be able to say which it is.
"""

import hashlib
import json
import os
import sys
import tempfile


def say(**reply: object) -> None:
    """One line of JSON."""
    sys.stdout.write(json.dumps(reply) + "\n")
    sys.stdout.flush()


def sound(path: str, digest: str) -> bool:
    """Whether the file is there and has the content that its name says."""
    try:
        with open(path, "rb") as file:
            return hashlib.sha256(file.read()).hexdigest() == digest
    except OSError:
        return False


def take(folder: str, path: str, digest: str, size: int) -> None:
    """Read the agent from stdin; it appears whole or not at all."""
    data = sys.stdin.buffer.read(size)
    if hashlib.sha256(data).hexdigest() != digest:
        raise OSError("what arrived is not what was sent")
    handle, part = tempfile.mkstemp(prefix=".part-", dir=folder)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        os.unlink(part)
        raise


def main(digest: str, size: int) -> None:
    """Say ``boot`` with the path of the agent, or ``error``."""
    version = ".".join(str(number) for number in sys.version_info[:3])
    if sys.version_info < (3, 8):  # noqa: UP036 - this is where an older one is told apart
        say(type="old", python=version, executable=sys.executable)
        return
    try:
        asked = os.environ.get("EDGEWISE_AGENT_HOME")
        home = asked or os.path.join(os.path.expanduser("~"), ".cache", "edgewise-agent")
        folder = os.path.join(os.path.realpath(home), "agents")
        os.makedirs(folder, 0o700, exist_ok=True)
        path = os.path.join(folder, digest + ".pyz")
        if not sound(path, digest):
            say(type="send")
            take(folder, path, digest, size)
        os.utime(path)
        say(type="boot", path=path, python=version)
    except OSError as error:
        say(type="error", message=str(error), errno=error.errno)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
