"""Measuring over a real OpenSSH server on loopback; on its side a bare Python: numpy, ONNX Runtime, nothing of ours.

The server greets each command with a line on stdout, as login shells do. What breaks a link is done to real processes.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from edgewise.bench import ask
from edgewise.bench.agent import lease
from edgewise.bench.config import Bench
from edgewise.bench.devices.address import address
from edgewise.bench.devices.base import Device, open_device
from edgewise.bench.devices.link import linked
from edgewise.bench.measure import measure
from edgewise.bench.record import FileUnderTest, Results, load_results
from edgewise.errors import DeviceError, MeasureError

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
CARRIED = ("numpy", "onnxruntime")  # and what they need
QUICK = Bench(launches=2, max_launches=2, blocks=2, block_ms=2, warmup_s=0, sample_hz=0)


class Server(NamedTuple):
    """A server of this user's own; ``python`` is on its side, ``home`` the agent's folder there."""

    process: subprocess.Popen[bytes]
    port: int
    folder: Path
    python: Path
    home: Path

    def device(self, python: Path | None = None) -> str:
        return f"ssh://127.0.0.1:{self.port}?python={python or self.python}"


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that finds numpy and ONNX Runtime, linked from here, and nothing else."""
    folder = tmp_path_factory.mktemp("bare") / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    site = next(folder.glob("lib/python*/site-packages"))
    wanted, seen = list(CARRIED), set()
    while wanted:
        name = wanted.pop()
        if name in seen:
            continue
        seen.add(name)
        for required in metadata.requires(name) or ():
            if "extra ==" not in required:
                wanted.append(required.split(";")[0].split(" ")[0].split(">")[0].split("=")[0].split("[")[0].strip())
        for file in metadata.files(name) or ():
            if ".." not in file.parts and not (site / file.parts[0]).exists():
                (site / file.parts[0]).symlink_to(Path(str(file.locate())).parents[len(file.parts) - 1] / file.parts[0])
    return folder / "bin/python"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, bare: Path) -> Iterator[Server]:
    """An sshd on a free port, and an ``ssh`` whose configuration knows its key."""
    client = shutil.which("ssh")
    if SSHD is None or client is None:
        pytest.skip("no OpenSSH server here: apt-get install openssh-server")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd asks for it, its package makes it at boot
    folder = tmp_path_factory.mktemp("sshd")
    for name in ("host", "id"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    shutil.copy(folder / "id.pub", folder / "authorized_keys")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = folder / "agent home"
    (folder / "server").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized_keys\n"
        "PidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
        f'SetEnv "EDGEWISE_AGENT_HOME={home}"\n'
        """ForceCommand echo "Welcome to this device!"; exec /bin/sh -c "$SSH_ORIGINAL_COMMAND"\n"""
    )
    (folder / "client").write_text(
        f"Host *\n  IdentityFile {folder}/id\n  IdentitiesOnly yes\n  UserKnownHostsFile {folder}/known\n"
        "  GlobalKnownHostsFile none\n"
    )
    key = (folder / "host.pub").read_text().split()[:2]
    (folder / "known").write_text(f"[127.0.0.1]:{port} {' '.join(key)}\n")
    tools = folder / "bin"
    tools.mkdir()
    (tools / "ssh").write_text(f'#!/bin/sh\nexec {client} -F {folder}/client "$@"\n')
    (tools / "ssh").chmod(0o755)
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen([SSHD, "-D", "-e", "-f", folder / "server"], stderr=log) as process,
        pytest.MonkeyPatch.context() as patch,
    ):
        _until(lambda: process.poll() is not None or _listens(port))
        if process.poll() is not None:
            pytest.fail(f"sshd doesn't start: {(folder / 'log').read_text()}")
        patch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
        yield Server(process, port, folder, bare, home)
        process.terminate()


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    path = tmp_path / "inputs.npy"
    np.save(path, np.random.default_rng(0).normal(size=(150, 3, 4, 4)).astype(np.float32))
    return path


def _listens(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def _until(found: Callable[[], bool], limit_s: float = 30.0) -> None:
    deadline = time.monotonic() + limit_s
    while not found():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def _processes(home: Path) -> list[int]:
    """The agent's processes: those that run out of its folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().split(b"\0")
        except OSError:
            continue
        if any(word.startswith(str(home).encode()) for word in words) and lease.born(int(entry.parent.name)):
            found.append(int(entry.parent.name))
    return found


def _connections(server: Server) -> list[int]:
    """The server's processes for open connections."""
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(server.process.pid)], capture_output=True, text=True)
    return [int(pid) for pid in listed.stdout.split()]


def _nothing_left(home: Path) -> None:
    _until(lambda: not _processes(home))
    _until(lambda: not (home / "lease").exists())
    assert not list((home / "sessions").iterdir())
    assert not [path.name for path in (home / "files").glob(".*")]


def _file(path: Path, name: str = "", runtime: str = "onnxruntime") -> FileUnderTest:
    return FileUnderTest(
        name=name or path.name,
        runtime=runtime,
        precision="float32",
        role="candidate",
        path=str(path),
        size_bytes=path.stat().st_size,
        sha256="0" * 64,
    )


def _right(outputs: Any, targets: Any) -> Any:
    return (outputs.argmax(axis=1) == targets).astype(np.float32)


def _measure(files: list[FileUnderTest], samples: Path, out: Path, device: Device, **other: Any) -> Results:
    targets = np.arange(150) % 5
    return measure(
        files, samples, targets, [f"s{i}" for i in range(150)], QUICK, out, score=_right, device=device, **other
    )


def _edgewise(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgewise", *map(str, arguments)]
    return subprocess.run(command, text=True, capture_output=True, timeout=300, check=False)


def test_the_other_side_is_bare(server: Server) -> None:
    """Its Python has what is measured with, and nothing of ours."""
    link = ["ssh", "-p", str(server.port), "127.0.0.1", str(server.python), "-c"]
    here = subprocess.run([*link, "'import numpy, onnxruntime; print(1)'"], capture_output=True, text=True, check=True)
    assert here.stdout.split("\n")[1] == "1"
    for module in ("edgewise", "yaml", "torch", "pydantic", "bench"):
        gone = subprocess.run([*link, f"'import {module}'"], capture_output=True, text=True, check=False)
        assert f"No module named '{module}'" in gone.stderr


@pytest.mark.slow
def test_bench_and_gate_over_ssh(server: Server, onnx_file: Callable[..., Path], tmp_path: Path) -> None:
    """The whole commands, twice: nothing is sent a second time, and nothing is left running."""
    files = [onnx_file("big one.onnx", 600), onnx_file("small.onnx", 8)]
    out = tmp_path / "out"
    kept: dict[Path, int] = {}
    for _ in range(2):
        done = _edgewise(
            *("bench", *files, "--device", server.device(), "--out", out, "--json"),
            *("--launches", 1, "--precision", 0.9),
        )
        assert done.returncode == 0, done.stderr
        table = json.loads(done.stdout)
        assert table["measured_on"] == server.device()
        assert [row["error"] for row in table["files"]] == [None, None]
        assert all(row["p50_ms"]["value"] > 0 and row["peak_memory_bytes"] > 10**7 for row in table["files"])
        _nothing_left(server.home)
        pushed = {path: path.stat().st_ino for path in server.home.rglob("*.*") if path.is_file()}
        assert len(pushed) >= 4  # the agent, two files, inputs
        assert {path: number for path, number in pushed.items() if path in kept} == kept
        kept = pushed
    results = load_results(out)
    assert results.provenance["versions"]["python"] == sys.version.split()[0]
    inputs = np.load(out / "inputs.npy")
    import onnxruntime

    for file in results.files:
        session = onnxruntime.InferenceSession(file.path, providers=["CPUExecutionProvider"])
        expected = np.concatenate([session.run(None, {"input": inputs[i : i + 1]})[0] for i in range(len(inputs))])
        outputs = results.outputs(file.name)
        assert outputs is not None
        np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-4)
    budget = tmp_path / "budget.yaml"
    for limit, code in ((10**9, 0), (10, 1)):
        budget.write_text(f"max_size_bytes: {limit}\nfiles: [small.onnx]\n")
        judged = _edgewise("gate", out, "--budget", budget)
        assert judged.returncode == code, judged.stdout + judged.stderr


def test_telemetry_and_provenance_are_the_devices(server: Server) -> None:
    with open_device(server.device()) as device:
        with pytest.raises(MeasureError), device.sample(20):
            raise MeasureError("a file's own trouble")
        with device.sample(20) as rows:
            time.sleep(0.5)
        assert rows
        assert all(row["t_ns"] > 0 for row in rows)
        found = device.probe()
        assert set(found) == {"device", "state", "versions"}
        assert "torch" not in found["versions"]
        assert device.cpus() == len(os.sched_getaffinity(0))
        told = device.runtimes(["onnxruntime", "openvino"])
        assert told["onnxruntime"] is None
        assert "openvino" in str(told["openvino"])


WEIRD = ["", "a b", "$HOME", "`id`", "$(id)", "'", '"', "\\", "*", ";", "&", "|", "line\nline", "-rf", "~", "#", "ü€"]


def test_every_argument_arrives_as_it_was(server: Server) -> None:
    script = "import sys, json; print(json.dumps(sys.argv[1:]))"
    with (
        linked(address(server.device()), "here") as link,
        tempfile.TemporaryFile() as errors,
        link.start([str(server.python), "-c", script, *WEIRD], errors) as process,
    ):
        assert process.stdout is not None
        lines = process.stdout.read().decode().splitlines()
    assert json.loads(lines[1]) == WEIRD


def test_a_cut_link_loses_nothing_that_was_finished(
    server: Server, onnx_file: Callable[..., Path], samples: Path, tmp_path: Path
) -> None:
    files = [_file(onnx_file("a.onnx")), _file(onnx_file("b.onnx", seed=1))]
    cut: list[str] = []

    def tick(done: int, total: int, note: str) -> None:
        if "launch 2" in note and not cut:
            cut.append(note)
            for pid in _connections(server):
                os.kill(pid, signal.SIGKILL)

    told = pytest.raises(DeviceError, match=r"(?s)broke off.*run the same command again")
    with told as caught, open_device(server.device()) as device:
        _measure(files, samples, tmp_path / "out", device, tick=tick)
    assert caught.value.exit_code == 5
    assert cut
    _nothing_left(server.home)
    kept = sorted((tmp_path / "out/launches").rglob("0.json"))
    assert len(kept) == 2
    first = {json.dumps(json.loads(path.read_text())["launch"]["blocks"]) for path in kept}
    with open_device(server.device()) as device:
        results = _measure(files, samples, tmp_path / "out", device)
    for file in files:
        launches = results.measurements[file.name].launches
        assert [launch.index for launch in launches] == [0, 1]
        plain = json.loads((tmp_path / "out/measurements.json").read_text())["measurements"][file.name]["launches"][0]
        assert json.dumps(plain["blocks"]) in first
    assert {answers.error for answers in results.answers.values()} == {None}


def test_a_killed_agent_is_told_and_the_next_run_works(
    server: Server, onnx_file: Callable[..., Path], samples: Path, tmp_path: Path
) -> None:
    files = [_file(onnx_file("a.onnx"))]

    def tick(done: int, total: int, note: str) -> None:
        if "block" in note:
            owner = lease.read(str(server.home / "lease"))
            assert owner is not None
            assert owner["who"].startswith(getpass.getuser())
            os.kill(owner["pid"], signal.SIGKILL)

    with pytest.raises(DeviceError, match="broke off"), open_device(server.device()) as device:
        _measure(files, samples, tmp_path / "out", device, tick=tick)
    _until(lambda: not _processes(server.home))
    assert (server.home / "lease").exists()  # nobody could drop it; its owner is dead, so the next one takes it
    with open_device(server.device()) as device:
        assert _measure(files, samples, tmp_path / "out", device).answers["a.onnx"].error is None
    _nothing_left(server.home)


def test_when_this_side_is_killed_the_other_side_ends(server: Server, tmp_path: Path) -> None:
    script = (
        "import time\nfrom edgewise.bench.devices.base import open_device\n"
        f"with open_device({server.device()!r}) as device:\n"
        "    worker = device.worker('x', 1)\n    worker.ask('import', limit_s=60, runtime='onnxruntime')\n"
        "    print('ready', flush=True)\n    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert len(_processes(server.home)) >= 2
        process.kill()
    _nothing_left(server.home)
    _until(lambda: not _connections(server))


def _wrapped(server: Server, folder: Path, *lines: str) -> Path:
    """The other side's Python with another environment."""
    path = folder / "python-there"
    path.write_text("#!/bin/sh\n" + "".join(f"{line}\n" for line in lines) + f'exec {server.python} "$@"\n')
    path.chmod(0o755)
    return path


def _fill(path: Path) -> None:
    """Write until the disk is full."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def test_a_full_disk_is_told_and_nothing_half_stays(
    server: Server, onnx_file: Callable[..., Path], samples: Path, tmp_path: Path
) -> None:
    small = tmp_path / "small disk"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=900k", "none", small], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("only root can mount a small disk here")
    try:
        python = _wrapped(server, tmp_path, f'export EDGEWISE_AGENT_HOME="{small}/home"')
        big = tmp_path / "big.npy"
        np.save(big, np.zeros((1000, 3, 4, 100), np.float32))
        with open_device(server.device(python)) as device:
            with pytest.raises(DeviceError, match=r"(?s)the disk there is full.*next: free some space"):
                device.put(big)
            assert not list((small / "home/files").iterdir())
            # While answering: everything is there, and then there is no room for the answers.
            path, inputs = device.put(onnx_file("a.onnx")), device.put(samples)
            index = tmp_path / "index.npy"
            np.save(index, np.arange(150).repeat(100))
            asked = {"path": path, "inputs": inputs, "threads": 1, "batch": 100, "precision": "float32"}
            index_there = device.put(index)
            worker = device.worker("a.onnx", 1)
            worker.ask("import", limit_s=60, runtime="onnxruntime")
            ballast = small / "ballast"
            _fill(ballast)
            with pytest.raises(DeviceError, match="the disk there is full"):
                worker.ask("answers", limit_s=60, index=index_there, out=device.out(tmp_path / "o.npy"), **asked)
            ballast.unlink()
        _nothing_left(small / "home")
        with open_device(server.device(python)) as device:
            assert (
                _measure([_file(onnx_file("a.onnx"))], samples, tmp_path / "out", device).answers["a.onnx"].samples
                == 150
            )
        # No room for the agent itself.
        shutil.rmtree(small / "home")
        _fill(ballast)
        done = _edgewise("doctor", "--device", server.device(python))
        assert done.returncode == 5
        assert "the disk there is full" in done.stderr
        assert "Traceback" not in done.stderr
        assert not list((small / "home").rglob("*.*"))
    finally:
        subprocess.run(["umount", "-l", small], check=True)


def test_a_hung_runtime_is_one_files_own_trouble(
    server: Server,
    onnx_file: Callable[..., Path],
    samples: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    planted = tmp_path / "planted/tflite_runtime"
    planted.mkdir(parents=True)
    (planted / "__init__.py").write_text("__version__ = '2.14.0'\n")
    (planted / "interpreter.py").write_text(
        "import time\n\nclass Interpreter:\n    def __init__(self, **options):\n        time.sleep(3600)\n"
    )
    python = _wrapped(server, tmp_path, f'export PYTHONPATH="{planted.parent}"')
    hangs = tmp_path / "hangs.tflite"
    hangs.write_bytes(b"\x1c\0\0\0TFL3" + bytes(100))
    absent = tmp_path / "absent.xml"
    absent.write_text("<net/>")
    absent.with_suffix(".bin").write_bytes(b"weights")
    files = [_file(onnx_file("a.onnx")), _file(hangs, runtime="litert"), _file(absent, runtime="openvino")]
    for room in ("edgewise.bench.launches", "edgewise.bench.ask"):
        monkeypatch.setattr(f"{room}.LIMIT_S", 5.0)
    assert ask.LIMIT_S == 5.0
    with open_device(server.device(python)) as device:
        results = _measure(files, samples, tmp_path / "out", device)
    assert results.measurements["a.onnx"].error is None
    assert len(results.measurements["a.onnx"].launches) == 2
    assert results.answers["a.onnx"].error is None
    error = str(results.measurements["hangs.tflite"].error)
    assert "no answer to 'load' within 5 s" in error
    assert "can't be imported" in str(results.measurements["absent.xml"].error)
    _nothing_left(server.home)
    # The gate finds that what it is to judge was not measured.
    budget = tmp_path / "budget.yaml"
    budget.write_text("max_p50_ms: 1000\nfiles: [hangs.tflite]\n")
    judged = _edgewise("gate", tmp_path / "out", "--budget", budget)
    assert judged.returncode == 3, judged.stdout + judged.stderr


def test_a_missing_runtime_is_told_before_anything_is_measured(server: Server, tmp_path: Path) -> None:
    (tmp_path / "net.xml").write_text("<net/>")
    (tmp_path / "net.bin").write_bytes(b"weights")
    done = _edgewise("bench", tmp_path / "net.xml", "--device", server.device())
    assert done.returncode == 5
    assert "openvino" in done.stderr
    assert "install it there" in done.stderr
    assert "Traceback" not in done.stderr
    _nothing_left(server.home)


def test_numpy_missing_there_is_told(server: Server, tmp_path: Path) -> None:
    (tmp_path / "numpy.py").write_text("raise ImportError('this is not numpy')")
    python = _wrapped(server, tmp_path, f'export PYTHONPATH="{tmp_path}"')
    with open_device(server.device(python)) as device:
        worker = device.worker("x", 1)
        with pytest.raises(DeviceError, match=r"(?s)can't import numpy.*pip install numpy"):
            worker.ask("import", limit_s=60, runtime="onnxruntime")


def test_a_device_in_use_says_by_whom(server: Server) -> None:
    with open_device(server.device()) as device:
        device.worker("x", 1)
        done = _edgewise("doctor", "--device", server.device())
        assert done.returncode == 5
        assert f"it is in use by {getpass.getuser()}@" in done.stderr
        assert "next: wait until it is free" in done.stderr
    _nothing_left(server.home)
    done = _edgewise("doctor", "--device", server.device())
    assert done.returncode == 0, done.stderr
    assert "onnxruntime  yes" in done.stdout


@pytest.mark.parametrize(
    ("change", "said", "hint"),
    [
        ({"python": "/no/such/python"}, "there is no /no/such/python", "Python 3.8 or later"),
        ({"port": 1}, "Connection refused", "start sshd"),
        ({"known": ""}, "Host key verification failed", "connect once by hand"),
        ({"id": "gone"}, "Permission denied", "ssh-copy-id"),
    ],
)
def test_what_ssh_says_is_told_with_a_way_on(
    server: Server, change: dict[str, Any], said: str, hint: str, tmp_path: Path
) -> None:
    python, port = change.get("python", server.python), change.get("port", server.port)
    known, identity = server.folder / "known", server.folder / "id"
    kept = known.read_text()
    if "known" in change:
        known.write_text(change["known"])
    if "id" in change:
        identity.rename(tmp_path / "id")
    try:
        with pytest.raises(DeviceError) as caught, open_device(f"ssh://127.0.0.1:{port}?python={python}"):
            pass
    finally:
        known.write_text(kept)
        if "id" in change:
            (tmp_path / "id").rename(identity)
    assert said in str(caught.value)
    assert hint in str(caught.value)


def test_a_crash_is_that_workers_alone(server: Server, onnx_file: Callable[..., Path]) -> None:
    with open_device(server.device()) as device:
        one, other = device.worker("one", 1), device.worker("other", 1)
        owner = lease.read(str(server.home / "lease"))
        assert owner is not None
        victims = [pid for pid in _processes(server.home) if pid != owner["pid"]]
        os.kill(min(victims), signal.SIGKILL)
        with pytest.raises(MeasureError, match=r"one: .*(by signal 9|no worker)"):
            one.ask("import", limit_s=60, runtime="onnxruntime")
        assert other.ask("import", limit_s=60, runtime="onnxruntime")["type"] == "import"


RECIPE = """
name: tiny
task: {{kind: digits}}
teacher:
  model: {{kind: cifar_resnet, depth: 8, width: 4}}
  train: {{epochs: 1, batch_size: 64, optimizer: {{kind: sgd, lr: 0.1}}}}
stages:
  - {{kind: quantize, calibration_samples: 64}}
deploy:
  calibration_samples: 64
  targets:
    - {{runtime: onnxruntime, precisions: [int8]}}
{more}bench: {{launches: 1, max_launches: 1, blocks: 2, block_ms: 5, warmup_s: 0.05, device: "{device}"}}
"""


@pytest.mark.slow
def test_a_run_is_measured_on_the_device_and_again_here(server: Server, tmp_path: Path) -> None:
    """The same files give the same answers on both sides; what the device can't run is told before the training."""
    recipe = tmp_path / "tiny.yaml"
    if find_spec("openvino") is not None:
        openvino = "    - {runtime: openvino, precisions: [int8]}\n"
        recipe.write_text(RECIPE.format(device=server.device(), more=openvino))
        refused = _edgewise("run", recipe, "--out", tmp_path / "refused")
        assert refused.returncode == 5
        assert "openvino" in refused.stderr
        assert "teacher" not in refused.stderr
    recipe.write_text(RECIPE.format(device=server.device(), more=""))
    done = _edgewise("run", recipe, "--out", tmp_path / "run", "--json")
    assert done.returncode == 0, done.stderr
    _nothing_left(server.home)
    there = load_results(next((tmp_path / "run/stages").glob("measure-*")))
    assert there.provenance["measured_on"] == server.device()
    again = _edgewise("bench", tmp_path / "run", "--device", "local", "--out", tmp_path / "here")
    assert again.returncode == 0, again.stderr
    here = load_results(tmp_path / "here")
    assert here.provenance["measured_on"] == "local"
    assert {file.name for file in here.files} == {file.name for file in there.files}
    for file in here.files:
        mine, theirs = here.outputs(file.name), there.outputs(file.name)
        assert mine is not None
        assert theirs is not None
        assert here.answers[file.name].error is None
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-4)
        assert here.answers[file.name].mean_score == there.answers[file.name].mean_score
    onto = _edgewise("bench", tmp_path / "run", "--out", tmp_path / "there")  # where its recipe says
    assert onto.returncode == 0, onto.stderr
    assert load_results(tmp_path / "there").provenance["measured_on"] == server.device()
    budget = tmp_path / "budget.yaml"
    budget.write_text("max_accuracy_drop_pp: 100\nfiles: [onnxruntime-int8]\n")
    judged = _edgewise("gate", tmp_path / "there", "--budget", budget)
    assert judged.returncode == 0, judged.stdout + judged.stderr
