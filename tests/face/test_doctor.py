"""The doctor says what is there and how to get the rest, without loading torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from edgewise.cli import app
from edgewise.deploy.runtimes import MODULES, get
from edgewise.doctor import advise, examine


def test_it_agrees_with_the_runtimes() -> None:
    health = examine()
    assert [state.name for state in health.runtimes] == list(MODULES)
    for state in health.runtimes:
        missing = get(state.name).missing()
        assert state.runs == (missing is None)
        if missing is not None:
            assert state.reason == missing
            assert state.get
    assert health.packages["pydantic"] == metadata.version("pydantic")
    assert health.folders["temporary folder"]["writable"]
    assert health.folders["temporary folder"]["free_bytes"] > 0


def test_json_and_text() -> None:
    done = CliRunner().invoke(app, ["doctor", "--json"])
    assert done.exit_code == 0
    value = json.loads(done.stdout)
    assert {runtime["name"] for runtime in value["runtimes"]} == set(MODULES)
    text = CliRunner().invoke(app, ["doctor"])
    assert text.exit_code == 0
    assert all(name in text.stdout for name in MODULES)


def test_what_is_missing_comes_with_the_way_to_get_it() -> None:
    code = (
        "import sys\n"
        "class Without:\n"
        "    def __init__(self, finder): self.finder = finder\n"
        "    def __getattr__(self, name): return getattr(self.finder, name)\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        gone = ('openvino', 'ai_edge_litert', 'tflite_runtime', 'litert_torch', 'tensorrt')\n"
        "        return None if name.split('.')[0] in gone else self.finder.find_spec(name, path, target)\n"
        "sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]\n"
        "from edgewise import doctor\n"
        "doctor.show(doctor.examine())\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: line.split()[1:3] for line in done.stdout.splitlines() if line.startswith(tuple(MODULES))}
    assert rows["openvino"] == ["no", "no"]
    assert rows["litert"] == ["no", "no"]
    assert "pip install 'edgewise[openvino]'" in done.stdout
    assert "pip install 'edgewise[litert]'" in done.stdout


def test_a_folder_that_can_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    tmp_path.chmod(0o500)
    monkeypatch.chdir(tmp_path)
    assert not examine().folders["working folder"]["writable"]


def device(flags: list[str], *, cores: int = 4, cpu_limit: float | None = None) -> dict[str, Any]:
    return {"flags": flags, "cores": cores, "affinity": list(range(cores)), "cpu_limit": cpu_limit}


def test_advice_fits_the_device() -> None:
    assert advise(device(["avx2", "avx_vnni"])) == []
    assert "no VNNI" in advise(device(["avx2"]))[0]
    assert "no dot product" in advise(device(["asimd"]))[0]
    assert advise(device(["asimd", "asimddp"])) == []
    assert "bf16" in advise(device(["avx2", "amx_int8", "amx_bf16"]))[0]
    assert advise(device(["asimd", "asimddp"], cpu_limit=1.5))[0].startswith("this container may use 1.5 of 4 cores")
    assert advise(device(["asimd", "asimddp"], cpu_limit=4.0)) == []
