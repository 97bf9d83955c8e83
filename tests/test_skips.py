"""Where CI says that a runtime or real data is required, a test can't skip for want of it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent

# One file a way of skipping: (source, the variable that forbids it).
SKIPPING = {
    "import": ("import pytest\ndef test(): pytest.importorskip('openvino_gone')\n", "EDGEWISE_REQUIRE_RUNTIMES"),
    "module": ("import pytest\npytest.importorskip('ai_edge_litert_gone')\n", "EDGEWISE_REQUIRE_RUNTIMES"),
    "mark": (
        "import pytest\n@pytest.mark.skipif(True, reason='onnxruntime is not installed')\ndef test(): pass\n",
        "EDGEWISE_REQUIRE_RUNTIMES",
    ),
    "data": ("def test(real_data): real_data('gone.npz')\n", "EDGEWISE_REQUIRE_DATA"),
}
ALLOWED = "import pytest\ndef test(): pytest.skip('tensorrt is not installed')\n"


def _outcome(source: str, folder: Path, **variables: str) -> int:
    """pytest's exit code for one test file that uses our conftest: 0 when it skips, or 5 when nothing was collected."""
    shutil.copy(TESTS / "conftest.py", folder)
    (folder / "pytest.ini").write_text("[pytest]\naddopts = -p no:anyio --import-mode=importlib\n")
    (folder / "test_it.py").write_text(source)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("EDGEWISE_", "PYTEST_"))}
    command = [sys.executable, "-m", "pytest", "-q", "test_it.py"]
    return subprocess.run(command, cwd=folder, env={**clean, **variables}, capture_output=True, check=False).returncode


@pytest.mark.parametrize("way", SKIPPING)
def test_a_skip_is_a_failure_where_the_thing_is_required(way: str, tmp_path: Path) -> None:
    source, variable = SKIPPING[way]
    assert _outcome(source, tmp_path) in (0, 5)
    assert _outcome(source, tmp_path, **{variable: "1"}) in (1, 2)


def test_other_skips_stay_skips(tmp_path: Path) -> None:
    assert _outcome(ALLOWED, tmp_path, EDGEWISE_REQUIRE_RUNTIMES="1", EDGEWISE_REQUIRE_DATA="1") == 0
