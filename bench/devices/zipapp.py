"""``agent.pyz``: what a device is sent, as one file that its Python runs. The same sources give the same bytes.

The standard library's ``zipapp`` keeps the times of the files, and compression depends on zlib's version; so the
archive is written here, uncompressed and without times. Its name on the device is the hash of its bytes.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from functools import cache
from pathlib import Path

from edgewise import errors
from edgewise.bench import agent
from edgewise.deploy import runtimes

TIME = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip file knows
MAIN = "import sys\n\nfrom edgewise.bench.agent.main import main\n\nsys.exit(main())\n"


@cache
def agent_bytes() -> bytes:
    """The archive: ``edgewise.errors``, ``edgewise.deploy.runtimes`` and ``edgewise.bench.agent``, nothing else."""
    files = {"__main__.py": MAIN.encode()}
    # Packages without a word: their own may import what devices don't have.
    files |= {f"edgewise/{name}__init__.py": b"" for name in ("", "bench/", "deploy/")}
    files["edgewise/errors.py"] = Path(errors.__file__).read_bytes()
    for name, package in (("bench/agent", agent), ("deploy/runtimes", runtimes)):
        for path in Path(str(package.__file__)).parent.glob("*.py"):
            files[f"edgewise/{name}/{path.name}"] = path.read_bytes()
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, TIME)
            entry.create_system, entry.external_attr = 3, 0o644 << 16
            archive.writestr(entry, files[name])
    return whole.getvalue()


def agent_sha256() -> str:
    """The name of this version's agent."""
    return hashlib.sha256(agent_bytes()).hexdigest()
