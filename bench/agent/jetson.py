"""What a Jetson says of itself: power mode, L4T and JetPack. Python >= 3.8, standard library.

Read from the files that ``nvpmodel`` keeps; only where they say nothing is the tool asked, without root. Never run on a
Jetson by its authors: tested on transcripts and planted files.
"""

from __future__ import annotations

import re
import subprocess
from typing import Any, Dict, Optional

from edgewise.bench.agent.files import exists, read, whole

STATUS = "var/lib/nvpmodel/status"
MODELS = "etc/nvpmodel.conf"
RELEASE = "etc/nv_tegra_release"
PACKAGES = ("nvidia-jetpack", "nvidia-l4t-core", "libnvinfer10", "libnvinfer8", "libnvinfer11", "tensorrt")
ASK_S = 10.0


def power_mode(root: str = "/") -> Optional[Dict[str, Any]]:
    """``{"id", "name"}`` of the power mode, either None where it isn't told; None where there is no nvpmodel."""
    if not exists(root, MODELS) and not exists(root, STATUS):
        return None
    number = _status(read(root, STATUS))
    if number is None and root == "/":
        return _asked()
    return {"id": number, "name": _names(read(root, MODELS)).get(number) if number is not None else None}


def nvpmodel(text: str) -> Optional[Dict[str, Any]]:
    """What ``nvpmodel -q`` prints: ``NV Power Mode: NAME``, then its number on the next line; None if it isn't that.

    Some versions print a fan mode before, or ``NVPM`` lines around.
    """
    name = None  # type: Optional[str]
    for line in text.splitlines():
        _, colon, rest = line.partition("NV Power Mode:")
        if colon and rest.strip():
            name = rest.strip()
            continue
        number = whole(line.strip())
        if name is not None and number is not None and 0 <= number < 1000:
            return {"id": number, "name": name}
    return None if name is None else {"id": None, "name": name}


def versions(root: str = "/") -> Dict[str, str]:
    """L4T, JetPack, TensorRT as the system's packages, and the NVIDIA driver; nothing on other devices."""
    found = {}
    release = _release(read(root, RELEASE))
    if release:
        found["l4t"] = release
    driver = read(root, "sys/module/nvidia/version")
    if driver:
        found["nvidia driver"] = driver
    if release:
        found.update(_packages(read(root, "var/lib/dpkg/status") or ""))
    return found


def _release(text: Optional[str]) -> Optional[str]:
    """``# R36 (release), REVISION: 4.3, …`` as 36.4.3."""
    match = re.match(r"# R(\d{1,4}) \(release\), REVISION: (\d[\d.]{0,20})", text or "")
    return "%s.%s" % match.groups() if match else None


def _packages(text: str) -> Dict[str, str]:
    found = {}
    for entry in text.split("\n\n"):
        fields = dict(line.partition(": ")[::2] for line in entry.splitlines() if not line.startswith(" "))
        if fields.get("Package") in PACKAGES and fields.get("Version"):
            found[fields["Package"]] = fields["Version"]
    return found


def _status(text: Optional[str]) -> Optional[int]:
    """``pmode:0002 fmode:quiet`` as 2."""
    match = re.search(r"\bpmode:(\d{1,4})\b", text or "")
    return int(match.group(1)) if match else None


def _names(text: Optional[str]) -> Dict[int, str]:
    """``< POWER_MODEL ID=0 NAME=MAXN >`` of each mode."""
    found = re.findall(r"<\s*POWER_MODEL\s+ID=(\d{1,4})\s+NAME=(\S+)\s*>", text or "")
    return {int(number): name for number, name in found}


def _asked() -> Optional[Dict[str, Any]]:
    try:
        done = subprocess.run(
            ["nvpmodel", "-q"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=ASK_S,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return nvpmodel(done.stdout.decode("utf-8", "replace"))
