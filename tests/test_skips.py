"""Where CI says that a runtime or real data is required, a test can't skip for want of it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent

# One test file a way of skipping; the last one is allowed everywhere.
SKIPPING = {
    "by_import": "import pytest\ndef test_it(): pytest.importorskip('openvino_gone')\n",
    "by_module": "import pytest\npytest.importorskip('ai_edge_litert_gone')\n",
    "by_mark": "import pytest\n@pytest.mark.skipif(True, reason='onnxruntime is not installed')\ndef test_it(): pass\n",
    "by_rtx": "import pytest\ndef test_it(): pytest.skip('TensorRT-RTX is not installed')\n",
    "by_ssh": "import pytest\ndef test_it(): pytest.skip('no OpenSSH server here')\n",
    "by_browser": "import pytest\ndef test_it(): pytest.skip('chromium is not installed')\n",
    "by_data": "def test_it(real_data): real_data('gone.npz')\n",
    "allowed": "import pytest\ndef test_it(): pytest.skip('tensorrt is not installed')\n",
}


def _outcomes(folder: Path, **variables: str) -> dict[str, str]:
    """SKIPPED, FAILED or ERROR for each of the files, run under our conftest."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("EDGEWISE_", "PYTEST_"))}
    command = [sys.executable, "-m", "pytest", "-q", "-rA", "--no-fold-skipped", "--continue-on-collection-errors"]
    done = subprocess.run(command, cwd=folder, env={**clean, **variables}, capture_output=True, text=True, check=False)
    return {
        name: word for word, name in re.findall(r"^(SKIPPED|FAILED|ERROR).*?test_(\w+)\.py", done.stdout, re.MULTILINE)
    }


def test_a_skip_is_a_failure_where_the_thing_is_required(tmp_path: Path) -> None:
    shutil.copy(TESTS / "conftest.py", tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = -p no:anyio --import-mode=importlib\n")
    for name, source in SKIPPING.items():
        (tmp_path / f"test_{name}.py").write_text(source)

    assert _outcomes(tmp_path) == dict.fromkeys(SKIPPING, "SKIPPED")
    kinds = ("RUNTIMES", "DATA", "SSH", "CHROMIUM")
    required = {f"EDGEWISE_REQUIRE_{kind}": "1" for kind in kinds}
    assert _outcomes(tmp_path, **required) == {
        "by_import": "FAILED",
        "by_module": "ERROR",
        "by_mark": "ERROR",
        "by_rtx": "FAILED",
        "by_ssh": "FAILED",
        "by_browser": "FAILED",
        "by_data": "FAILED",
        "allowed": "SKIPPED",
    }
