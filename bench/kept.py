"""What is finished is on disk at once: a later call that asks for the same goes on from there.

``launches/<key>/<number>.json`` below the results' folder; the key is a hash of how it is measured, of the file's
bytes, of the device with the versions on it, and of its boot. Blocks pair only within a round, so a round counts as
done when every file of it has its launch, all of the same token. When all is measured the folder goes:
``measurements.json`` has everything.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from edgewise import __version__
from edgewise.bench.ask import beside, options
from edgewise.bench.config import Bench
from edgewise.bench.devices.base import Device
from edgewise.bench.record import FORMAT, FileUnderTest, Launch, launch_from_json

FOLDER = "launches"
TELEMETRY = "telemetry.jsonl"
FED = 64  # samples that timed inferences cycle through; the others can't change a time
HOW = ("threads", "batch", "blocks", "block_ms", "warmup_s", "seed")

T = TypeVar("T")


class Kept:
    """The finished parts of one call, below ``out``."""

    def __init__(self, out: Path, inputs: Path, config: Bench, name: str, probed: Mapping[str, Any]) -> None:
        """``inputs``: what the files are timed with; ``name``: the device's; ``probed``: what it says of itself."""
        self._folder = out / FOLDER
        self._telemetry = self._folder / TELEMETRY
        how = config.model_dump(mode="json")
        fed = np.load(inputs, mmap_mode="r", allow_pickle=False)[:FED]
        self._same = {
            "format": FORMAT,
            "config": {key: how[key] for key in HOW},
            "inputs": hashlib.sha256(np.ascontiguousarray(fed).tobytes()).hexdigest(),
            "where": {"name": name, **probed["device"]},
            # Other versions take other times, and another boot has another clock: launches must share both.
            "versions": {**probed.get("versions", {}), "edgewise": __version__},
            "boot": probed.get("state", {}).get("boot"),
        }
        self._config = config
        self._keys: dict[str, str] = {}

    def token(self) -> str:
        """What all launches of one round share and no other round has."""
        return secrets.token_hex(8)

    def keep(self, file: FileUnderTest, number: int, token: str, done: Launch | str) -> None:
        """Write down a launch, or why there is none."""
        launch = asdict(done) if isinstance(done, Launch) else None
        self._write(file, str(number), {"round": token, "launch": launch, "error": None if launch else done})

    def round(self, number: int, files: Sequence[FileUnderTest]) -> dict[str, Launch | str] | None:
        """The round's launches, or why a file has none; None where it isn't complete."""
        found: dict[str, Launch | str] = {}
        tokens = set()
        for file in files:
            plain = self._read(file, str(number))
            try:
                tokens.add(plain["round"])
                found[file.name] = launch_from_json(plain["launch"]) if plain["launch"] else str(plain["error"])
            except (AttributeError, KeyError, TypeError):
                return None
        return found if len(tokens) == 1 else None

    def once(self, file: FileUnderTest, name: str, about: Any, make: Callable[[], T], plain: Callable[[T], Any]) -> Any:
        """``plain(make())``, from disk where an earlier call has made it for the same ``about``."""
        found = self._read(file, name)
        if isinstance(found, dict) and found.get("about") == about:
            return found["made"]
        made = json.loads(json.dumps(plain(make())))
        self._write(file, name, {"about": about, "made": made})
        return made

    @contextlib.contextmanager
    def telemetry(self, device: Device, hz: float) -> Iterator[list[dict[str, Any]]]:
        """Let the device's sensors be read ``hz`` times a second meanwhile, and add what they said; never for 0.

        The list has the rows when the context ends.
        """
        if hz == 0:
            yield []
            return
        with device.sample(hz) as rows:
            yield rows
        self._folder.mkdir(parents=True, exist_ok=True)
        with self._telemetry.open("a", encoding="utf-8") as log:
            log.writelines(f"{_plain(row)}\n" for row in rows)

    def telemetry_to(self, out: Path) -> list[dict[str, Any]]:
        """All telemetry, copied into the folder ``out``; no file where there is none."""
        if not self._telemetry.exists():
            return []
        lines = self._telemetry.read_text(encoding="utf-8").splitlines()
        rows = [row for line in lines if isinstance(row := _json(line), dict)]
        (out / TELEMETRY).write_text("".join(f"{_plain(row)}\n" for row in rows), encoding="utf-8")
        return rows

    def done(self) -> None:
        """Everything is measured and written elsewhere."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _read(self, file: FileUnderTest, name: str) -> Any:
        try:
            return _json((self._of(file) / f"{name}.json").read_text(encoding="utf-8"))
        except OSError:
            return None

    def _write(self, file: FileUnderTest, name: str, plain: dict[str, Any]) -> None:
        folder = self._of(file)
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f"{name}.part"
        part.write_text(_plain(plain), encoding="utf-8")
        part.replace(folder / f"{name}.json")

    def _of(self, file: FileUnderTest) -> Path:
        if file.name not in self._keys:
            parts = [_sha256(path) for path in (Path(file.path), *beside(file))]
            about = {**self._same, "file": [file.name, file.runtime, parts, options(file, self._config)]}
            text = json.dumps(about, sort_keys=True, default=str)
            self._keys[file.name] = hashlib.sha256(text.encode()).hexdigest()[:32]
        return self._folder / self._keys[file.name]


def _plain(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _json(text: str) -> Any:
    """None where it was cut short."""
    try:
        return json.loads(text)
    except ValueError:
        return None


def _sha256(path: Path) -> str | None:
    found = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                found.update(piece)
    except OSError:
        return None
    return found.hexdigest()
