"""Devices as this side sees them: addresses, the archive that is sent, and a host that believes no reply unseen."""

from __future__ import annotations

import ast
import contextlib
import errno
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import pytest

hypothesis = pytest.importorskip("hypothesis", reason="hypothesis is not installed")
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from edgewise.bench.devices.address import Address, address  # noqa: E402
from edgewise.bench.devices.base import open_device, require_runtimes  # noqa: E402
from edgewise.bench.devices.link import Link  # noqa: E402
from edgewise.bench.devices.local import LocalDevice, telemetry  # noqa: E402
from edgewise.bench.devices.session import RemoteWorker, Session  # noqa: E402
from edgewise.bench.devices.ssh import SSHDevice  # noqa: E402
from edgewise.bench.devices.zipapp import agent_bytes, agent_sha256  # noqa: E402
from edgewise.bench.replies import impossible, parsed, understood  # noqa: E402
from edgewise.errors import AddressError, DeviceError, MeasureError, RuntimeMissing  # noqa: E402

FUZZ = settings(max_examples=100, deadline=None, database=None)
NUMBERS = st.integers() | st.floats() | st.booleans() | st.none() | st.text(max_size=5)
KEYS = st.sampled_from(["wall_ns", "samples_ns", "peak_bytes", "phase", "type", "x"]) | st.text(max_size=5)
JSON = st.recursive(
    NUMBERS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=12
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ssh://pi", Address("pi")),
        ("ssh://Pi5.local/", Address("Pi5.local")),
        ("ssh://anna@10.0.0.7:2222", Address("10.0.0.7", "anna", 2222)),
        ("ssh://[fe80::1]:22", Address("fe80::1", None, 22)),
        ("ssh://jetson?python=/opt/env/bin/python3", Address("jetson", python="/opt/env/bin/python3")),
        ("ssh://a_b-c", Address("a_b-c")),
    ],
)
def test_addresses(text: str, expected: Address) -> None:
    assert address(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "ssh://-oProxyCommand=id",
        "ssh://-oProxyCommand=id@host",
        "ssh://anna@-host",
        "ssh://@host",
        "ssh://",
        "ssh://host/path",
        "ssh://host:port",
        "ssh://host:99999",
        "ssh://ho st",
        "ssh://host?python=-c",
        "ssh://host?python=",
        "ssh://host?python=a b",
        "ssh://host?user=x",
        "ssh://host?python=a&python=b",
        "ssh://host#there",
    ],
)
def test_what_could_be_an_option_or_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(AddressError) as caught:
        address(text)
    assert caught.value.exit_code == 2  # a mistake in the command; 5 is worth another try


def test_a_password_is_refused_and_not_repeated() -> None:
    with pytest.raises(DeviceError, match="no passwords") as caught:
        address("ssh://anna:secret@host")
    assert "secret" not in str(caught.value)


@FUZZ
@given(st.text(max_size=30))
def test_whatever_the_address_nothing_looks_like_an_option(text: str) -> None:
    with contextlib.suppress(DeviceError):
        found = address("ssh://" + text)
        line = Link(found, "there", Path("/tmp/x")).arguments(master=True)
        at = line.index("--")
        assert line[at + 1 :] == [found.host]
        assert not found.host.startswith("-")
        assert not (found.user or "").startswith("-")
        assert not found.python.startswith("-")


@pytest.mark.parametrize("text", ["", "remote", "ssh", "ssh://", "http://host", "telnet://host", "adb://"])
def test_other_kinds_of_devices_are_refused(text: str) -> None:
    with pytest.raises(AddressError), open_device(text):
        pass


def test_the_archive_has_what_is_carried_and_nothing_else(tmp_path: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(agent_bytes())) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        sources = {name: archive.read(name).decode() for name in names}
    assert names == sorted(names)
    rooms = ("edgewise/bench/agent/", "edgewise/deploy/runtimes/")
    others = {name for name in names if not name.startswith(rooms)}
    assert others == {
        "__main__.py",
        *(f"edgewise/{name}" for name in ("__init__.py", "errors.py", "bench/__init__.py", "deploy/__init__.py")),
    }
    # What it imports of ours, it has.
    modules = {name[:-3].replace("/", ".").removesuffix(".__init__") for name in names}
    for name, source in sources.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("edgewise"):
                assert node.module in modules, name


def test_the_same_sources_give_the_same_bytes(tmp_path: Path) -> None:
    script = "from edgewise.bench.devices.zipapp import agent_sha256; print(agent_sha256())"
    environment = {**os.environ, "TZ": "Asia/Tokyo", "PYTHONHASHSEED": "7"}
    told = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == agent_sha256()


def test_a_half_sent_archive_does_not_run(tmp_path: Path) -> None:
    path = tmp_path / "agent.pyz"
    path.write_bytes(agent_bytes()[:-100])
    assert subprocess.run([sys.executable, path, "probe"], capture_output=True, check=False).returncode != 0


def test_this_machine_as_a_device(tmp_path: Path) -> None:
    device = LocalDevice()
    (tmp_path / "a").write_text("x")
    assert device.put(tmp_path / "a") == str(tmp_path / "a")
    assert device.cpus() >= 1
    with device.sample(50) as rows:
        start = time.monotonic_ns()
        time.sleep(0.6)
        end = time.monotonic_ns()
    assert rows
    assert [row["t_ns"] for row in rows] == sorted({row["t_ns"] for row in rows})
    # The clock of telemetry is that of the blocks.
    assert any(start < row["t_ns"] < end for row in rows)
    with open_device("local") as opened:
        require_runtimes(opened, [], all_of=True)


class Lacking(LocalDevice):
    """This machine, where nothing is installed but ONNX Runtime."""

    def runtimes(self, names: Any) -> dict[str, str | None]:
        return {name: None if name == "onnxruntime" else f"{name} isn't there" for name in names}


def test_missing_runtimes_are_told_all_or_some() -> None:
    device = Lacking()
    require_runtimes(device, ["onnxruntime", "litert"], all_of=False)
    with pytest.raises(RuntimeMissing, match="litert isn't there"):
        require_runtimes(device, ["onnxruntime", "litert"], all_of=True)
    device.name = "ssh://pi"
    with pytest.raises(DeviceError, match=r"(?s)ssh://pi: litert.*install it there"):
        require_runtimes(device, ["litert", "litert"], all_of=False)


def test_telemetry_skips_what_is_no_row() -> None:
    lines = [b'{"t_ns": 1}', b'{"t_ns": 2', b"", b"hello", b'{"t_ns": -1}', b'{"t_ns": NaN}', b"[1]", b'{"t_ns": 3.5}']
    assert telemetry(lines) == [{"t_ns": 1}]


# The host's reader


def _sound(reply: Any) -> bool:
    """Slowly: no number but whole ones from 0 under a time or size, at any depth."""
    if isinstance(reply, list):
        return all(_sound(one) for one in reply)
    if not isinstance(reply, dict):
        return True
    for key, value in reply.items():
        if key.endswith(("_ns", "_bytes")):
            many = value if isinstance(value, list) else [value]
            for one in many:
                unknown = one is None and key.endswith("_bytes") and not isinstance(value, list)
                if not unknown and (isinstance(one, bool) or not isinstance(one, int) or one < 0):
                    return False
        elif not _sound(value):
            return False
    return True


@FUZZ
@given(st.dictionaries(KEYS, JSON, max_size=5))
def test_a_reply_with_an_impossible_number_is_found(reply: dict[str, Any]) -> None:
    assert (impossible(reply) is None) == _sound(reply)


@pytest.mark.parametrize(
    "line",
    [
        *(b'{"type": "block", "wall_ns": 1', b'{"wall_ns": NaN}', b'{"wall_ns": -Infinity}'),
        *(b"[]", b"7", b"", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 100_000),
    ],
)
def test_half_a_line_and_what_is_no_object_is_nothing(line: bytes) -> None:
    assert parsed(line) is None


@FUZZ
@given(st.sampled_from(["block", "load", "close"]), JSON | st.fixed_dictionaries({"type": st.just("error")}), JSON)
def test_a_reply_is_sound_or_an_error_that_names_the_file(do: str, reply: Any, kind: Any) -> None:
    if isinstance(reply, dict) and reply.get("type") == "error":
        reply = {**reply, "kind": kind, "message": kind, "errno": kind}
    told, found = _caught(lambda: understood("the file", do, reply, reply, lambda: "; it said nothing"))
    if isinstance(told, OSError):
        assert told.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    elif isinstance(told, DeviceError):
        assert kind == "DeviceError"
    elif told is not None:
        assert (type(told), getattr(told, "where", "")) == (MeasureError, "the file")
    else:
        assert found["type"] == do
        assert _sound(found)


def _caught(act: Callable[[], Any]) -> tuple[Exception | None, Any]:
    """What an error was raised, and what came."""
    try:
        return None, act()
    except Exception as error:
        return error, None


LINES = st.lists(
    st.binary(max_size=40)
    | JSON.map(lambda value: json.dumps(value).encode())
    | st.fixed_dictionaries(
        {"type": st.sampled_from(["started", "reply", "died", "late", "refused", "over", "hello", "sampled"])},
        optional={
            "worker": st.just(1) | JSON,
            "reply": st.fixed_dictionaries({"type": st.just("block")}, optional={"wall_ns": NUMBERS}) | JSON,
            "said": JSON,
            "message": JSON,
            "errno": JSON,
        },
    ).map(lambda value: json.dumps(value).encode()),
    max_size=6,
)
HELLO = {"type": "hello", "protocol": 2}


@settings(FUZZ, max_examples=40)
@given(LINES)
def test_a_session_survives_whatever_the_other_side_says(lines: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as errors:
        said = Path(folder, "said")
        said.write_bytes(b"\n".join(lines))  # the last line is cut off
        script = f"echo Welcome; echo '{json.dumps(HELLO)}'; read request; cat {said}"
        process = subprocess.Popen(["/bin/sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        session = Session(process, errors, "there", 30.0)
        told, reply = _caught(lambda: RemoteWorker(session, "the file", 1).ask("block", limit_s=1.0))
        session.close()
    if told is None:
        assert _sound(reply)
    else:
        assert (type(told), getattr(told, "where", "")) in ((MeasureError, "the file"), (DeviceError, "there"))


@pytest.mark.parametrize("hello", ["", "{}", "no agent", '{"type": "hello", "protocol": 1}', '{"type": "hello"}'])
def test_something_else_than_an_agent_is_refused(hello: str) -> None:
    with tempfile.TemporaryFile() as errors:
        script = ["/bin/sh", "-c", f"echo '{hello}'"]
        process = subprocess.Popen(script, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        with pytest.raises(DeviceError):
            Session(process, errors, "there", 30.0)
        process.communicate()


def test_a_kill_is_heard_at_once_by_who_waits_in_another_thread(tmp_path: Path) -> None:
    agent = tmp_path / "agent.pyz"
    agent.write_bytes(agent_bytes())
    # A runtime that never answers is a worker that is stopped; the agent itself is the real one.
    environment = {**os.environ, "EDGEWISE_AGENT_HOME": str(tmp_path / "home")}
    command = [sys.executable, str(agent), "run", "--who", "test"]
    told: list[Exception | None] = []
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        opened = Session(process, errors, "there", 60.0)
        one, other = RemoteWorker(opened, "the file", 1), RemoteWorker(opened, "another", 1)
        for pid in _children(process.pid):
            os.kill(pid, signal.SIGSTOP)
        waiting = threading.Thread(
            target=lambda: told.append(_caught(lambda: one.ask("import", limit_s=3600.0, runtime="none"))[0])
        )
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive()
        one.kill()
        waiting.join(30.0)
        assert not waiting.is_alive()
        one.close()
        for pid in _children(process.pid):
            os.kill(pid, signal.SIGCONT)
        # The others go on, and so does the session.
        assert "runtime" in str(_caught(lambda: other.ask("import", limit_s=60.0, runtime="none"))[0])
        other.close()
        assert opened.open(1) == 3
        opened.close()
    assert type(told[0]) is MeasureError
    assert "ended from here" in str(told[0])
    assert process.returncode is not None


def _children(pid: int) -> list[int]:
    found = [int(each) for path in Path(f"/proc/{pid}/task").glob("*/children") for each in path.read_text().split()]
    assert found
    return found


@pytest.mark.parametrize("script", ["exec sleep 600", "sleep 60 & exec sleep 600"])
def test_what_ignores_the_end_of_its_stdin_is_ended_by_force(script: str) -> None:
    with tempfile.TemporaryFile() as errors:
        command = ["/bin/sh", "-c", f"echo '{json.dumps(HELLO)}'; {script}"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        opened = Session(process, errors, "there", 30.0)
        closing = threading.Thread(target=opened.close, daemon=True)
        closing.start()
        closing.join(30.0)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert not closing.is_alive()
    assert process.returncode == -signal.SIGKILL


class _Shrinking(Link):
    """A link to this machine without ssh; ``path`` loses its end once it was described to the other side."""

    def __init__(self, home: Path, path: Path, gone: bool) -> None:
        super().__init__(Address("here"), "there", home)
        self.home, self.path, self.gone = home, path, gone

    def start(self, command: Sequence[str], errors: IO[bytes]) -> subprocess.Popen[bytes]:
        if "put" in command:
            self.path.unlink() if self.gone else os.truncate(self.path, 1_500_000)
        environment = {**os.environ, "EDGEWISE_AGENT_HOME": str(self.home)}
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=errors, env=environment)


@pytest.mark.parametrize(("gone", "told"), [(False, "ended after 1500000"), (True, "No such file")])
def test_a_file_that_changes_while_it_is_sent_is_told(gone: bool, told: str, tmp_path: Path) -> None:
    agent, path, home = tmp_path / "agent.pyz", tmp_path / "model.onnx", tmp_path / "home"
    agent.write_bytes(agent_bytes())
    path.write_bytes(os.urandom(3_000_000))
    with contextlib.ExitStack() as stack:
        device = SSHDevice("there", _Shrinking(home, path, gone), [sys.executable, str(agent)], stack)
        with pytest.raises(MeasureError, match=told) as caught:
            device.put(path)
        assert caught.value.where == str(path)
        assert list((home / "files").iterdir()) == []
        whole = tmp_path / "whole.onnx"  # the next one arrives
        whole.write_bytes(b"all of it")
        path.write_bytes(bytes(2_000_000))
        assert Path(device.put(whole)).read_bytes() == b"all of it"
