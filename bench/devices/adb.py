"""An Android phone over the system's ``adb``: LiteRT's ``benchmark_model`` runs a .tflite, and its own words are read.

There is no Python on a phone, so the tool's binary (which the user gives) does the timing, in a fresh process a launch.
It tells an average and no single times: an interval comes from the averages of several launches, percentiles are the
tool's own. Everything lies below one folder, files by their hash; no root, nothing is set on the phone.

Never run on a phone by its authors: tested with an ``adb`` that plays transcripts.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgewise.bench.parsers.text import last_words
from edgewise.errors import DeviceError, MeasureError

FOLDER = "/data/local/tmp/edgewise"
SERIAL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:\-]{0,126}")
MASK = re.compile(r"[0-9a-fA-F]{1,16}")
NAME = re.compile(r"[^A-Za-z0-9._-]+")
ASK_S = 30.0
PUSH_S = 600.0
MARK = "EDGEWISE_EXIT:"
FULL = "No space left on device"
THERMAL = ("none", "light", "moderate", "severe", "critical", "emergency", "shutdown")
BATTERY_STATES = {1: "Unknown", 2: "Charging", 3: "Discharging", 4: "Not charging", 5: "Full"}


@dataclass(frozen=True)
class Said:
    """What a command on the phone said, and its exit status there."""

    code: int
    text: str


class Adb:
    """One phone. Every argument is quoted for its shell; every call ends by a time limit on this side."""

    def __init__(self, serial: str, command: str = "adb") -> None:
        """Find the phone and what its shell can do.

        Raises:
            DeviceError: not a serial, no ``adb`` here, or the phone isn't there, isn't ready, or didn't allow it.
        """
        if not SERIAL.fullmatch(serial):
            raise DeviceError(
                f"expected a serial as `adb devices` lists it, got {serial!r}", where="device", hint="adb devices -l"
            )
        self.serial, self.name, self._command = serial, f"adb://{serial}", command
        state = self._adb("get-state", limit_s=ASK_S)
        if state.code != 0 or state.text.strip() != "device":
            raise self._gone(state.text)
        features = self._adb("features", limit_s=ASK_S).text.split()
        # Since Android 7: the exit status comes back, and stderr apart from stdout.
        self._status = any(word.strip(",") == "shell_v2" for line in features for word in line.split(","))

    def shell(self, *argv: str, limit_s: float = ASK_S, folder: str | None = None) -> Said:
        """Run one command on the phone, in ``folder``.

        Raises:
            DeviceError: the phone went away.
            MeasureError: it took longer than ``limit_s``.
        """
        line = shlex.join(argv)
        if folder is not None:
            line = f"cd {shlex.quote(folder)} && {line}"
        if self._status:
            said = self._adb("shell", line, limit_s=limit_s)
            if said.code in (1, 255) and said.text.startswith(("error: ", "adb: ")):
                raise self._gone(said.text)
            return said
        said = self._adb("shell", f"{line}; echo {MARK}$?", limit_s=limit_s)
        text, mark, code = said.text.rpartition(MARK)
        if said.code != 0 or not mark or not code.strip().isascii() or not code.strip().isdigit():
            raise self._gone(said.text)
        return Said(int(code), text)

    def put(self, path: Path) -> str:
        """Bring a file to the phone, unless its hash is there already; its path there.

        Raises:
            DeviceError: no room, or the phone went away; a half-sent file keeps its ``.part`` and is never run.
        """
        digest = _sha256(path)
        folder = f"{FOLDER}/{digest[:16]}"
        remote = f"{folder}/{NAME.sub('-', path.name).strip('.-') or 'file'}"
        if self._sha256(remote) == digest:
            return remote
        self._must("mkdir", "-p", folder)
        said = self._adb("push", str(path.absolute()), f"{remote}.part", limit_s=PUSH_S)
        if said.code != 0:
            self.shell("rm", "-f", f"{remote}.part")
            if FULL in said.text:
                raise DeviceError(
                    f"no room for {path.name} on the phone", where=self.name, hint=f"adb shell rm -r {FOLDER}"
                )
            raise DeviceError(f"can't push {path.name}; {last_words(said.text)}", where=self.name)
        arrived = self._sha256(f"{remote}.part")
        if arrived is not None and arrived != digest:
            raise DeviceError(f"{path.name} arrived damaged", where=self.name, hint="try another cable")
        self._must("mv", f"{remote}.part", remote)
        return remote

    def clean(self) -> None:
        """Remove all that was ever brought."""
        self._must("rm", "-rf", FOLDER)

    def probe(self) -> dict[str, Any]:
        """The phone, as ``edgewise.bench.provenance.provenance`` has a machine: ``device``, ``state``, ``versions``."""
        said = self.shell("getprop").text
        properties = dict(re.findall(r"^\[([\w.\-]{1,200})\]: \[([^\]\r\n]{0,500})\]", said, flags=re.MULTILINE))
        freq = "/sys/devices/system/cpu/cpu*/cpufreq/cpuinfo_max_freq"
        # The pattern must reach the phone's shell unquoted; it is ours, nobody's input.
        clocks = self._raw(f"cat {freq} 2>/dev/null").text.split()
        return {
            "device": {
                "machine": properties.get("ro.product.cpu.abi"),
                "cpu": properties.get("ro.soc.model") or properties.get("ro.board.platform"),
                "board": " ".join(
                    filter(None, (properties.get("ro.product.manufacturer"), properties.get("ro.product.model")))
                ),
                "serial": hashlib.sha256(self.serial.encode()).hexdigest()[:12],
                "clusters_max_khz": sorted({int(clock) for clock in clocks if clock.isascii() and clock.isdigit()}),
                "os": f"Android {properties.get('ro.build.version.release')}",
                "build": properties.get("ro.build.fingerprint"),
                "patch": properties.get("ro.build.version.security_patch"),
            },
            "state": self.state(),
            "versions": {},
        }

    def state(self) -> dict[str, Any]:
        """Battery and heat now; None for what the phone doesn't tell."""
        battery = self.shell("dumpsys", "battery").text
        thermal = re.search(r"^Thermal Status: (\d)", self.shell("dumpsys", "thermalservice").text, flags=re.MULTILINE)
        level, status = _field(battery, "level"), _field(battery, "status")
        degrees = _field(battery, "temperature")
        return {
            "battery": {
                "capacity_percent": level,
                "status": None if status is None else BATTERY_STATES.get(status),
                "temperature_c": None if degrees is None else degrees / 10,
            },
            "thermal_status": THERMAL[int(thermal.group(1))] if thermal and int(thermal.group(1)) < 7 else None,
        }

    def _must(self, *argv: str) -> None:
        said = self.shell(*argv)
        if said.code != 0:
            raise DeviceError(f"{argv[0]} failed; {last_words(said.text)}", where=self.name)

    def _raw(self, line: str) -> Said:
        return self._adb("shell", line, limit_s=ASK_S)

    def _sha256(self, remote: str) -> str | None:
        said = self.shell("sha256sum", remote)
        word = said.text.split()[0] if said.code == 0 and said.text.split() else ""
        return word if re.fullmatch(r"[0-9a-f]{64}", word) else None

    def _adb(self, *argv: str, limit_s: float) -> Said:
        try:
            done = subprocess.run(
                [self._command, "-s", self.serial, *argv],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=limit_s,
                check=False,
            )
        except FileNotFoundError as error:
            raise DeviceError(
                "adb isn't installed here", where=self.name, hint="apt-get install adb, or Android's platform-tools"
            ) from error
        except subprocess.TimeoutExpired as error:
            raise MeasureError(f"no answer to {argv[0]!r} within {limit_s:g} s", where=self.name) from error
        except OSError as error:
            raise DeviceError(f"can't start adb: {error}", where=self.name) from error
        return Said(done.returncode, done.stdout.decode("utf-8", "replace").replace("\r\n", "\n"))

    def _gone(self, text: str) -> DeviceError:
        hint = "adb devices -l lists those that answer"
        if "unauthorized" in text:
            hint = "allow this computer on the phone's screen"
        return DeviceError(f"the phone can't be used; {last_words(text)}", where=self.name, hint=hint)


@contextlib.contextmanager
def open_adb(text: str) -> Iterator[Any]:
    """Always refuses: a phone has no worker that could hold a file. ``edgewise bench`` measures .tflite files on it.

    Raises:
        DeviceError: always.
    """
    yield from ()
    raise DeviceError(
        "a phone has no Python, so only LiteRT's benchmark_model can time a .tflite there",
        where=text,
        hint=f"edgewise bench FILE.tflite --device {text} --benchmark-model PATH",
    )


def serial_of(text: str) -> str:
    """``adb://SERIAL`` as SERIAL.

    Raises:
        DeviceError: it isn't that.
    """
    kind, mark, serial = text.partition("://")
    if kind != "adb" or not mark or not SERIAL.fullmatch(serial):
        raise DeviceError(f"expected adb://SERIAL, got {text!r}", where="device", hint="adb devices -l")
    return serial


def tool_argv(binary: str, graph: str, options: Sequence[str], *, mask: str | None, limit_s: float) -> list[str]:
    """The command on the phone: ended there by its own ``timeout``, on the CPUs of ``mask`` (hexadecimal).

    Raises:
        MeasureError: the mask isn't one.
    """
    if mask is not None and not MASK.fullmatch(mask):
        raise MeasureError(f"expected a mask of CPUs such as f0, got {mask!r}", where="taskset")
    pinned = [] if mask is None else ["taskset", mask]
    return ["timeout", f"{limit_s:.0f}", *pinned, binary, f"--graph={graph}", *options]


def _field(text: str, name: str) -> int | None:
    match = re.search(rf"^\s*{name}: (-?\d{{1,6}})\s*$", text, flags=re.MULTILINE)
    return int(match.group(1)) if match else None


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        return digest.hexdigest()
    except OSError as error:
        raise MeasureError(f"can't be read: {error.strerror or error}", where=str(path)) from error
