"""The protocol of a device: start workers, bring files, say what it is. Three of them: local, ssh, adb."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

from edgewise.errors import AddressError, DeviceError, RuntimeMissing


class Worker(Protocol):
    """One process on the device that holds one file. Ask it one thing at a time: between two questions it sleeps."""

    @property
    def file(self) -> str:
        """The name of the file that it holds."""

    def ask(self, do: str, *, limit_s: float, **request: Any) -> dict[str, Any]:
        """Send one request and wait for its reply.

        Raises:
            MeasureError: the worker refused, died, or took longer than ``limit_s``; it is dead then.
            DeviceError: the device itself doesn't answer any more, or has no room left.
        """

    def kill(self) -> None:
        """End the process, whatever it does."""

    def close(self) -> None:
        """Kill what still runs and free what it held."""


class Device(Protocol):
    """Where files are measured. Opened by ``open_device``; its methods may be called from several threads."""

    @property
    def name(self) -> str:
        """``local``, or the address it was opened by."""

    def worker(self, file: str, threads: int) -> Worker:
        """Start a process for the file called ``file``, with pools of ``threads``.

        Raises:
            MeasureError: it can't be started.
            DeviceError: the device doesn't answer.
        """

    def put(self, path: Path, *, beside: Sequence[Path] = ()) -> str:
        """Bring a file to the device, with those that must lie beside it; what is there already is not sent again.

        Returns:
            The path that a worker opens.

        Raises:
            DeviceError: no room, or the link broke; nothing half-sent is kept.
        """

    def out(self, local: Path) -> str:
        """The path for a worker to write what ``get`` then brings to ``local``."""

    def get(self, remote: str, local: Path) -> None:
        """Bring a file that a worker wrote at ``remote`` to ``local``, and drop it there.

        Raises:
            DeviceError: it can't be had.
        """

    def probe(self) -> dict[str, Any]:
        """The device now, as ``edgewise.bench.provenance.provenance`` has it: ``device``, ``state``, ``versions``."""

    def runtimes(self, names: Collection[str]) -> dict[str, str | None]:
        """Each of these runtimes there: None where it works, else the sentence that says what is missing."""

    def sample(self, hz: float) -> AbstractContextManager[list[dict[str, Any]]]:
        """Take telemetry meanwhile; the list is filled when the context ends."""

    def cpus(self) -> int:
        """CPUs that a worker may use."""


def require_runtimes(device: Device, wanted: Collection[str], *, all_of: bool) -> None:
    """Check that files of the runtimes ``wanted`` can be measured there: all of them, or any.

    Raises:
        RuntimeMissing: not on this machine.
        DeviceError: not on that device.
    """
    found = device.runtimes(sorted(set(wanted)))
    missing = {name: found.get(name, "unknown there") for name in wanted if found.get(name, "unknown there")}
    if not missing or (not all_of and len(missing) < len(set(wanted))):
        return
    why = "; ".join(str(text) for text in missing.values())
    if device.name == "local":
        raise RuntimeMissing(why, hint="edgewise doctor says how to get it")
    raise DeviceError(why, where=device.name, hint=f"install it there; edgewise doctor --device {device.name}")


@contextmanager
def open_device(text: str) -> Iterator[Device]:
    """The device called ``text``: ``local``, ``ssh://[user@]host[:port][?python=/path]`` or ``adb://SERIAL``.

    Raises:
        AddressError: no such kind of device.
        DeviceError: it can't be used; says why.
    """
    kind, _, rest = text.partition("://")
    if text == "local":
        from edgewise.bench.devices.local import LocalDevice

        yield LocalDevice()
    elif kind == "ssh" and rest:
        from edgewise.bench.devices.ssh import open_ssh

        with open_ssh(text) as device:
            yield device
    elif kind == "adb" and rest:
        from edgewise.bench.devices.adb import open_adb

        with open_adb(text) as phone:
            yield phone
    else:
        raise AddressError(
            f"expected local, ssh://[user@]host[:port] or adb://SERIAL, got {text!r}",
            where="device",
            hint="docs/devices.md has examples",
        )
