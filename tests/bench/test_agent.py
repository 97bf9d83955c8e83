"""What is carried to a device: the store that keeps to its folder, the lease, the supervisor. Real processes."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

hypothesis = pytest.importorskip("hypothesis", reason="hypothesis is not installed")
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from edgewise.bench.agent import lease, store, supervise, worker  # noqa: E402
from edgewise.bench.devices.zipapp import agent_bytes  # noqa: E402

FUZZ = settings(max_examples=60, deadline=None, database=None)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("EDGEWISE_AGENT_HOME", str(tmp_path / "home"))
    return store.home()


@pytest.fixture(scope="module")
def pyz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("agent") / "agent.pyz"
    path.write_bytes(agent_bytes())
    return path


def described(*parts: tuple[str, bytes]) -> list[dict[str, Any]]:
    return [{"suffix": suffix, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for suffix, data in parts]


def everything(folder: str | Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in Path(folder).rglob("*")}


# The store


def test_files_lie_beside_each_other_and_are_found_again(home: str) -> None:
    files = described((".xml", b"<net/>"), (".bin", b"weights"))
    assert store.have(home, files) is None
    path = store.put(home, files, io.BytesIO(b"<net/>weights"), time.time())
    assert Path(path).read_bytes() == b"<net/>"
    assert Path(path).with_suffix(".bin").read_bytes() == b"weights"
    assert store.have(home, files) == path
    assert store.have(home, described((".xml", b"<net/>"))) is None  # alone, they are something else
    Path(path).with_suffix(".bin").write_bytes(b"damaged")
    assert store.have(home, files) is None
    assert not Path(path).exists()


@pytest.mark.parametrize(("sent", "why"), [(b"<net/>weig", "before the end"), (b"<net/>WEIGHTS", "not what was sent")])
def test_what_arrives_broken_is_not_kept(home: str, sent: bytes, why: str) -> None:
    files = described((".xml", b"<net/>"), (".bin", b"weights"))
    with pytest.raises(store.Refused, match=why):
        store.put(home, files, io.BytesIO(sent), time.time())
    assert everything(home) == {"files"}


@pytest.mark.parametrize(
    "wrong",
    [
        [],
        [{"suffix": "/../../x", "size": 1, "sha256": "0" * 64}],
        [{"suffix": ".onnx", "size": 1, "sha256": "../" + "0" * 61}],
        [{"suffix": ".onnx", "size": -1, "sha256": "0" * 64}],
        [{"suffix": ".onnx", "size": True, "sha256": "0" * 64}],
        [{"suffix": ".onnx"}],
        [None],
        [{"suffix": ".onnx", "size": 1, "sha256": "0" * 64}] * 2,
    ],
)
def test_descriptions_that_lead_elsewhere_are_refused(home: str, wrong: list[Any]) -> None:
    with pytest.raises(store.Refused):
        store.have(home, wrong)
    with pytest.raises(store.Refused):
        store.put(home, wrong, io.BytesIO(b"x"), 0.0)
    assert everything(home) == set()


def test_only_what_a_session_wrote_is_given_away(home: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("no")
    session = Path(store.session(home))
    (session / "link").symlink_to(secret)
    (session / "1.npy").write_bytes(b"answers")
    told: list[dict[str, Any]] = []
    for path in (secret, session / "link", session / ".." / ".." / ".." / "secret", Path("relative")):
        with pytest.raises(store.Refused):
            store.give(home, str(path), told.append, io.BytesIO())
    to = io.BytesIO()
    store.give(home, str(session / "1.npy"), told.append, to)
    assert to.getvalue() == b"answers"
    assert told == [{"type": "file", "size": 7, "sha256": hashlib.sha256(b"answers").hexdigest()}]
    assert not (session / "1.npy").exists()
    assert secret.read_text() == "no"


def test_cleaning_takes_what_was_unused_longest_and_spares_the_session(home: str) -> None:
    paths = []
    for number in range(4):
        data = bytes([number]) * 1000
        paths.append(Path(store.put(home, described((".onnx", data)), io.BytesIO(data), time.time())))
        os.utime(paths[-1].parent, (1000 + number, 1000 + number))
    assert store.have(home, described((".onnx", bytes(1000)))) == str(paths[0])  # the oldest is used again
    assert store.clean(home, 2500, time.time() - 60) == {"removed_bytes": 2000, "kept_bytes": 2000}
    assert [path.exists() for path in paths] == [True, False, False, True]
    assert store.clean(home, 0, time.time() - 60)["kept_bytes"] == 1000
    assert [path.exists() for path in paths] == [True, False, False, False]
    (Path(home) / "files" / "not mine").mkdir()
    store.clean(home, 0, time.time() + 60)
    assert everything(home) == {"files", "files/not mine"}


def test_a_new_session_sweeps_what_a_killed_one_left(home: str) -> None:
    for left in ("sessions/old", "files/.part-x"):
        (Path(home) / left).mkdir(parents=True)
        (Path(home) / left / "file").write_bytes(b"half")
    session = store.session(home)
    assert everything(home) == {"files", "sessions", f"sessions/{Path(session).name}"}


def test_no_room_leaves_nothing_half(home: str, pyz: Path) -> None:
    data = os.urandom(3_000_000)
    head = json.dumps({"files": described((".onnx", data))}).encode() + b"\n"
    limited = f"ulimit -f 1000 && exec {sys.executable} {pyz} put"  # blocks of 1024 bytes
    done = subprocess.run(
        ["bash", "-c", f"trap '' XFSZ; {limited}"], input=head + data, capture_output=True, timeout=60
    )
    replies = [json.loads(line) for line in done.stdout.splitlines()]
    assert [reply["type"] for reply in replies] == ["send", "error", "end"]
    assert replies[1]["errno"] == 27  # EFBIG, which a quota says, too
    assert replies[2] == {"type": "end", "rc": 5}
    assert everything(home) == {"files"}


# The lease


def _holder(home: str, does: str) -> subprocess.Popen[str]:
    script = (
        f"import os, sys, time\nfrom edgewise.bench.agent import lease\nheld = lease.take({home!r}, 'anna@laptop')\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script + does], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_one_at_a_time_and_who_it_is(home: str) -> None:
    with _holder(home, "print('held', flush=True); time.sleep(60)") as process:
        with pytest.raises(lease.Held, match=rf"in use by anna@laptop \(process {process.pid} there\) since 20\d\d-"):
            lease.take(home, "me")
        process.kill()
    mine = lease.take(home, "me")  # the owner is dead
    owner = lease.read(mine.path)
    assert owner is not None
    assert (owner["who"], owner["pid"]) == ("me", os.getpid())
    mine.drop()
    assert everything(home) == {"lease.guard"}
    mine.drop()  # twice does no harm


def test_many_at_once_and_one_gets_it(home: str) -> None:
    script = (
        "import sys, time\nfrom edgewise.bench.agent import lease\n"
        f"try: lease.take({home!r}, 'x')\nexcept lease.Held: print('held')\n"
        "else: print('mine', flush=True); time.sleep(3)"
    )
    (Path(home) / "lease").mkdir()  # one that is stale: its owner died before it could write its name
    os.utime(Path(home) / "lease", (1, 1))
    processes = [subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) for _ in range(5)]
    told = sorted(process.communicate(timeout=60)[0].strip() for process in processes)
    assert told == ["held"] * 4 + ["mine"]


def test_an_owner_that_hangs_is_ended_after_its_time(home: str) -> None:
    with _holder(home, "print('held', flush=True); time.sleep(60)") as process:
        old = time.time() - lease.LASTS_S - 1
        os.utime(Path(home) / "lease", (old, old))
        lease.take(home, "me").drop()
        assert process.wait(timeout=20) == -signal.SIGKILL


@pytest.mark.parametrize(
    ("change", "free"),
    [
        ({"boot": "another"}, True),  # the device was restarted since
        ({"born": "1"}, True),  # the number belongs to another process by now
        ({"host": "elsewhere"}, False),  # a shared home: nobody can tell from here
        ({"since": float("inf")}, False),
        ({"who": None, "since": []}, False),
    ],
)
def test_who_counts_as_alive(home: str, change: dict[str, Any], free: bool) -> None:
    held = lease.take(home, "me")
    path = Path(held.path, "owner.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    if free:
        lease.take(home, "you")
    else:
        with pytest.raises(lease.Held):
            lease.take(home, "you")


@pytest.mark.parametrize("garbage", ["", "[]", "{", '{"pid": "1"}', "null"])
def test_a_lease_without_an_owner_is_free_after_a_moment(home: str, garbage: str) -> None:
    folder = Path(home, "lease")
    folder.mkdir()
    (folder / "owner.json").write_text(garbage)
    with pytest.raises(lease.Held, match="just being taken"):
        lease.take(home, "me")
    os.utime(folder, (1, 1))
    lease.take(home, "me").drop()


def test_no_room_for_a_lease_leaves_none(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() == 0 and not shutil.which("mount"):
        pytest.skip("no way to fill a disk here")
    script = (
        "import resource, signal, sys\nfrom edgewise.bench.agent import lease\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nresource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))\n"
        f"try: lease.take({home!r}, 'me')\nexcept OSError as error: sys.exit(error.errno)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 27
    assert everything(home) == {"lease.guard"}


# The supervisor


class Talk:
    """A supervisor in a process of its own, as a device runs it."""

    def __init__(self, pyz: Path, python: str = sys.executable) -> None:
        self.process = subprocess.Popen(
            [python, str(pyz), "run", "--who", "test"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def say(self, **request: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.process.stdin.flush()

    def hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        reply = json.loads(self.process.stdout.readline())
        assert isinstance(reply, dict)
        return reply

    def end(self) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        if not self.process.stdout.closed:
            self.process.stdout.read()
            self.process.stdout.close()
        return self.process.wait(timeout=30)


@pytest.fixture
def talk(home: str, pyz: Path) -> Iterator[Talk]:
    one = Talk(pyz)
    yield one
    one.process.kill()
    one.end()


def _runs(pid: int) -> bool:
    return lease.born(pid) is not None


def _gone(pid: int) -> bool:
    deadline = time.monotonic() + 20
    while _runs(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not _runs(pid)


def test_a_session_starts_workers_and_ends_them(talk: Talk, home: str) -> None:
    hello = talk.hear()
    assert (hello["type"], hello["protocol"], hello["cpus"]) == ("hello", 2, len(os.sched_getaffinity(0)))
    pids = []
    for number in (1, 2):
        talk.say(do="start", worker=number, threads=1)
        pids.append(talk.hear()["pid"])
    talk.say(do="ask", worker=1, limit_s=60, request={"do": "import", "runtime": "onnxruntime"})
    reply = talk.hear()
    assert (reply["worker"], reply["reply"]["type"]) in {(1, "import"), (1, "error")}
    talk.say(do="kill", worker=2)
    assert _gone(pids[1])
    assert talk.end() == 0
    assert _gone(pids[0])
    assert everything(home) == {"sessions", "lease.guard"}


def test_a_worker_is_told_late_dead_or_busy(talk: Talk, tmp_path: Path) -> None:
    session = talk.hear()["session"]
    talk.say(do="start", worker=1, threads=1)
    first = talk.hear()["pid"]
    os.kill(first, signal.SIGSTOP)
    talk.say(do="ask", worker=1, limit_s=0.2, request={"do": "import", "runtime": "none"})
    talk.say(do="ask", worker=1, limit_s=5, request={"do": "close"})
    assert "still works" in talk.hear()["message"]
    late = talk.hear()
    assert (late["type"], late["worker"]) == ("late", 1)
    assert not _runs(first)
    talk.say(do="start", worker=2, threads=1)
    os.kill(talk.hear()["pid"], signal.SIGKILL)
    talk.say(do="ask", worker=2, limit_s=60, request={"do": "close"})
    died = talk.hear()
    # Whether its end is seen before the request or after it, it is told.
    assert died["type"] in ("died", "refused")
    assert "by signal 9" in died.get("status", "by signal 9")
    talk.say(do="start", worker=3, threads=1)
    assert talk.hear()["type"] == "started"
    for out in (str(tmp_path / "stolen.npy"), f"{session}/../../stolen.npy", "stolen.npy", 7):
        talk.say(do="ask", worker=3, limit_s=60, request={"do": "answers", "out": out})
        assert "outside" in talk.hear()["message"]
    assert not list(tmp_path.rglob("stolen*"))


def test_telemetry_is_taken_beside(talk: Talk) -> None:
    talk.hear()
    talk.say(do="sample", hz=50)
    time.sleep(0.5)
    talk.say(do="sample", hz=50)
    assert "already" in talk.hear()["message"]
    talk.say(do="sampled")
    told = talk.hear()
    rows = [json.loads(line) for line in Path(told["path"]).read_text().splitlines()]
    times = [row["t_ns"] for row in rows if "t_ns" in row]
    assert times == sorted(set(times))
    assert times


def test_when_the_agent_is_killed_its_workers_end_and_the_next_session_starts(home: str, pyz: Path) -> None:
    one = Talk(pyz)
    session = Path(one.hear()["session"])
    one.say(do="start", worker=1, threads=1)
    pid = one.hear()["pid"]
    second = Talk(pyz)
    refused = second.hear()
    assert (refused["type"], refused["kind"]) == ("error", "Held")
    assert f"in use by test (process {one.process.pid} there)" in refused["message"]
    assert second.end() == 5
    one.process.kill()
    one.end()
    if sys.platform == "linux":
        assert _gone(pid)
    third = Talk(pyz)
    assert third.hear()["type"] == "hello"
    assert not session.exists()
    assert third.end() == 0


def test_silence_ends_a_session_as_a_cut_link_does(home: str, pyz: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The alarm that silence sets off, a minute earlier than it would."""
    one = Talk(pyz)
    one.hear()
    one.say(do="start", worker=1, threads=1)
    pid = one.hear()["pid"]
    one.process.send_signal(signal.SIGALRM)
    assert one.process.wait(timeout=30) == 1
    assert _gone(pid)
    assert everything(home) == {"sessions", "lease.guard"}
    one.end()


def test_a_session_ends_at_its_own_limit(home: str, pyz: Path) -> None:
    done = subprocess.Popen(
        [sys.executable, str(pyz), "run", "--limit-s", "0.3"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with done:
        assert done.stdout is not None
        kinds = [json.loads(line)["type"] for line in done.stdout]
    assert kinds == ["hello", "over", "end"]


def _supervised(lines: bytes, command: list[str], folder: str) -> list[dict[str, Any]]:
    """What a supervisor in this process says to ``lines``, and then to the end of its input."""
    source, into = os.pipe()
    to = io.BytesIO()
    one = supervise.Supervisor(command, folder, source, to, None)
    writer = threading.Thread(target=_write, args=(into, lines))
    writer.start()
    before = signal.signal(signal.SIGALRM, signal.SIG_IGN)
    try:
        one.serve(time.monotonic() + 30)
    finally:
        one.end()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        writer.join()
        os.close(source)
    return [json.loads(line) for line in to.getvalue().splitlines()]


def _write(into: int, lines: bytes) -> None:
    with os.fdopen(into, "wb") as pipe:
        pipe.write(lines)


REQUEST = st.fixed_dictionaries(
    {"do": st.sampled_from([*supervise.SERVED, "dance"]) | JSON},
    optional={
        "worker": st.integers(-2, 3) | JSON,
        "threads": st.integers(-2, 2) | JSON,
        "limit_s": st.floats(allow_nan=True) | JSON,
        "request": JSON,
        "hz": JSON,
    },
).map(lambda request: json.dumps(request).encode())


@FUZZ
@given(st.lists(REQUEST | st.binary(max_size=60) | JSON.map(lambda v: json.dumps(v).encode()), max_size=12))
def test_the_supervisor_survives_any_request(requests: list[bytes]) -> None:
    echo = [shutil.which("sh") or "/bin/sh", "-c", "cat"]
    with tempfile.TemporaryDirectory() as folder:
        replies = _supervised(b"\n".join(requests) + b"\n", echo, folder)
        assert everything(folder) <= {path for path in everything(folder) if path.endswith(".jsonl")}
    assert {reply["type"] for reply in replies} <= {"started", "reply", "died", "late", "refused", "sampled"}


@FUZZ
@given(st.lists(st.binary(max_size=200), max_size=6), st.integers(1, 50))
def test_lines_are_found_in_any_pieces(lines: list[bytes], longest: int) -> None:
    clean = [line.replace(b"\n", b"") for line in lines]
    data = b"".join(line + b"\n" for line in clean)
    for size in (1, 7, len(data) or 1):
        one = supervise.Lines(longest)
        found = [line for start in range(0, len(data), size) for line in one.feed(data[start : start + size])]
        assert found == [line for line in clean if len(line) <= longest]
        assert one.lost == sum(len(line) > longest for line in clean)


@settings(FUZZ, max_examples=25)
@given(st.binary(max_size=300))
def test_whatever_a_worker_prints_is_told_as_its_reply(noise: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "noise")
        path.write_bytes(noise + b"\n")
        command = [shutil.which("sh") or "/bin/sh", "-c", f"read line; cat {path}; exec cat >/dev/null"]
        start = {"do": "start", "worker": 1, "threads": 1}
        ask = {"do": "ask", "worker": 1, "limit_s": 20, "request": {"do": "import"}}
        source, into = os.pipe()
        to = io.BytesIO()
        one = supervise.Supervisor(command, folder, source, to, None)
        before = signal.signal(signal.SIGALRM, signal.SIG_IGN)
        os.write(into, b"".join(json.dumps(line).encode() + b"\n" for line in (start, ask)))
        try:
            # Its input ends only once the reply is there.
            ending = threading.Thread(target=_close_after, args=(into, to))
            ending.start()
            one.serve(time.monotonic() + 30)
            ending.join()
        finally:
            one.end()
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)
            os.close(source)
    started, reply = [json.loads(line) for line in to.getvalue().splitlines()]
    assert (started["type"], reply["type"], reply["worker"]) == ("started", "reply", 1)
    try:
        expected = json.loads(noise.split(b"\n")[0], parse_constant=lambda name: 1 / 0)
    except (ValueError, ZeroDivisionError):
        assert isinstance(reply["reply"], str)
    else:
        assert reply["reply"] == expected


def _close_after(into: int, to: io.BytesIO) -> None:
    deadline = time.monotonic() + 20
    while to.getvalue().count(b"\n") < 2 and time.monotonic() < deadline:
        time.sleep(0.001)
    os.close(into)


@FUZZ
@given(
    st.lists(
        st.fixed_dictionaries(
            {"do": st.sampled_from(sorted(worker.REQUESTS)) | JSON},
            optional=dict.fromkeys(("runtime", "path", "threads", "batch", "precision", "ms", "out", "index"), JSON),
        ).map(json.dumps)
        | st.text(max_size=40).filter(lambda text: "\n" not in text and "\r" not in text),
        max_size=4,
    )
)
def test_a_worker_answers_any_request_and_says_goodbye(lines: list[str]) -> None:
    to = io.StringIO()
    status = worker.serve(io.StringIO("".join(line + "\n" for line in lines)), to)
    replies = [json.loads(line) for line in to.getvalue().splitlines()]
    assert replies[-1] == {"type": "end", "rc": status}
    assert all(reply["type"] in {"error", "close", *worker.REQUESTS} for reply in replies[:-1])


# The archive on its own


def _bare(python: str, pyz: Path, *arguments: str, home: Path, stdin: bytes = b"") -> list[dict[str, Any]]:
    clean = {"PATH": os.environ["PATH"], "EDGEWISE_AGENT_HOME": str(home), "PYTHONWARNINGS": "error"}
    done = subprocess.run(
        [python, "-s", str(pyz), *arguments], input=stdin, capture_output=True, timeout=120, env=clean, cwd=home
    )
    assert done.stderr == b"" or arguments[0] == "run", done.stderr.decode()
    return [json.loads(line) for line in done.stdout.splitlines()]


def _old_python() -> str | None:
    found = sorted(Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv").glob("versions/3.8.*/bin/python"))
    return str(found[0]) if found else shutil.which("python3.8")


def test_the_agent_works_on_a_real_python_3_8(pyz: Path, tmp_path: Path) -> None:
    python = _old_python()
    if python is None:
        pytest.skip("no Python 3.8 here: pyenv install 3.8 gives one; vermin reads the agent all the same")
    probe, end = _bare(python, pyz, "probe", home=tmp_path)
    assert probe["versions"]["python"].startswith("3.8.")
    assert {"device", "state", "versions"} < set(probe)
    assert end == {"type": "end", "rc": 0}
    runtimes, _ = _bare(python, pyz, "runtimes", "onnxruntime", home=tmp_path)
    if "numpy" in probe["versions"]:
        assert "onnxruntime" in runtimes["runtimes"]
    else:
        assert "can't import numpy" in runtimes["runtimes"]["onnxruntime"]
    one = b"".join(
        json.dumps(line).encode() + b"\n"
        for line in ({"do": "ping"}, {"do": "start", "worker": 1, "threads": 1}, {"do": "nonsense"})
    )
    replies = _bare(python, pyz, "run", home=tmp_path, stdin=one)
    assert [reply["type"] for reply in replies] == ["hello", "started", "refused", "end"]
    row = _bare(python, pyz, "sample", "--hz", "5", home=tmp_path)[0]
    assert row["t_ns"] > 0
    cleaned, _ = _bare(python, pyz, "clean", home=tmp_path)
    assert cleaned == {"type": "clean", "removed_bytes": 0, "kept_bytes": 0}
    boot = Path(store.__file__).with_name("boot.py").read_text()
    data = pyz.read_bytes()
    took = subprocess.run(
        [python, "-c", boot, hashlib.sha256(data).hexdigest(), str(len(data))],
        input=data,
        capture_output=True,
        env={"EDGEWISE_AGENT_HOME": str(tmp_path)},
        timeout=60,
    )
    assert [json.loads(line)["type"] for line in took.stdout.splitlines()] == ["send", "boot"], took.stderr


def test_the_agent_lives_in_its_own_folder(pyz: Path, tmp_path: Path) -> None:
    before = everything(tmp_path)
    for arguments in (("probe",), ("clean",), ("runtimes", "litert"), ("run",)):
        _bare(sys.executable, pyz, *arguments, home=tmp_path)
    assert everything(tmp_path) - before <= {"lease.guard", "sessions"}
