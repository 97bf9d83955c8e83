"""``action.yml``: what GitHub would refuse, what an input could smuggle into a shell, and what its steps really do."""

from __future__ import annotations

import os
import re
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
STEPS: list[dict[str, Any]] = ACTION["runs"]["steps"]
SCRIPTS = [step for step in STEPS if "run" in step]


def test_it_is_a_composite_action() -> None:
    assert set(ACTION) <= {"name", "author", "description", "inputs", "outputs", "runs", "branding"}
    assert ACTION["runs"]["using"] == "composite"
    for step in STEPS:
        assert ("run" in step) != ("uses" in step)
    for step in SCRIPTS:
        assert step["shell"] == "bash"  # composite steps have no default
        assert step["run"].startswith("set -euo pipefail\n")
    for given in ACTION["inputs"].values():
        assert set(given) == {"description", "default"}
        assert isinstance(given["default"], str)  # an action's inputs are text
    for told in ACTION["outputs"].values():
        assert set(told) == {"description", "value"}


def test_no_expression_stands_in_a_script() -> None:
    """``${{ }}`` is pasted into the script before the shell reads it: an input could end the line and go on."""
    for step in SCRIPTS:
        assert "${{" not in step["run"]


def test_every_input_is_used_by_way_of_the_environment_and_quoted() -> None:
    used = set()
    for step in SCRIPTS:
        for name, value in step["env"].items():
            used |= set(re.findall(r"inputs\.([a-z-]+)", value))
            for match in re.finditer(rf"\$\{{?{name}\b", step["run"]):
                line = step["run"][step["run"].rfind("\n", 0, match.start()) + 1 :].partition("\n")[0]
                before = line[: line.find(match[0])]
                assert before.count('"') % 2 == 1 or "[[" in before or f"{name}=" in line, line
    used |= set(re.findall(r"inputs\.([a-z-]+)", str([step for step in STEPS if "uses" in step])))
    assert used == set(ACTION["inputs"])


@pytest.fixture
def told(tmp_path: Path) -> Path:
    """An ``edgewise`` on the path that writes down how it was called, and a verdict."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "edgewise"
    program.write_text(
        """#!/usr/bin/env python3
import json, os, sys
with open(os.environ["TOLD"], "a") as file:
    print(json.dumps(sys.argv[1:]), file=file)
if sys.argv[1] == "gate":
    if os.environ["CODE"] != "2":
        with open(sys.argv[sys.argv.index("--verdict") + 1], "w") as file:
            json.dump({"status": "FAIL"}, file)
    sys.exit(int(os.environ["CODE"]))
"""
    )
    program.chmod(program.stat().st_mode | stat.S_IEXEC)
    return tmp_path


def _run(folder: Path, code: int = 0, **inputs: str) -> tuple[subprocess.CompletedProcess[str], list[list[str]], str]:
    """The gate's step with these inputs, as the runner would run it."""
    import json

    (step,) = (step for step in SCRIPTS if step.get("id") == "gate")
    defaults = {name: given["default"] for name, given in ACTION["inputs"].items()}
    values = {**defaults, **{name.replace("_", "-"): value for name, value in inputs.items()}}
    plain = {
        name: values[re.fullmatch(r"\$\{\{ inputs\.([a-z-]+) \}\}", value)[1]]  # type: ignore[index]
        for name, value in step["env"].items()
    }
    calls, outputs = folder / "calls", folder / "outputs"
    for path in (calls, outputs):
        path.write_text("")
    environment = {**os.environ, **plain, "TOLD": str(calls), "CODE": str(code), "GITHUB_OUTPUT": str(outputs)}
    environment["PATH"] = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return done, [json.loads(line) for line in calls.read_text().splitlines()], outputs.read_text()


@pytest.mark.parametrize("code", [0, 1, 3, 4])
def test_the_step_hands_over_everything_and_ends_with_the_gates_code(code: int, told: Path) -> None:
    given = {"run": "my run", "budget": "b u.yaml", "against": "$(touch hacked)", "on_invalid": "retry:2"}
    done, (call,), outputs = _run(told, code, **given, on_inconclusive='warn"; touch hacked; "', out="o")
    assert done.returncode == code
    assert call == [
        *("gate", "--verdict", "o/verdict.json", "--junit", "o/junit.xml", "--github"),
        *("--budget", "b u.yaml", "--against", "$(touch hacked)"),
        *("--on-inconclusive", 'warn"; touch hacked; "', "--on-invalid", "retry:2", "--", "my run"),
    ]
    assert not (told / "hacked").exists()
    assert outputs == "status=FAIL\nverdict=o/verdict.json\njunit=o/junit.xml\n"


def test_files_are_measured_first_and_names_stay_names(told: Path) -> None:
    done, calls, _ = _run(told, files="  a b.onnx\n\n--help.onnx\n`touch hacked`.onnx\n", threads="2", budget="b.yaml")
    assert done.returncode == 0
    measured = ["--", "a b.onnx", "--help.onnx", "`touch hacked`.onnx"]
    assert calls[0] == ["bench", "--threads", "2", "--out", "edgewise-gate/measured", *measured]
    assert calls[1][-2:] == ["--", "edgewise-gate/measured"]
    assert not (told / "hacked").exists()


@pytest.mark.parametrize("given", [{}, {"run": "a", "files": "b"}])
def test_a_run_or_files_and_not_both(given: dict[str, str], told: Path) -> None:
    done, calls, outputs = _run(told, **given)
    assert (done.returncode, calls, outputs) == (2, [], "")
    assert "::error title=edgewise gate::expected run or files" in done.stdout


def test_without_a_verdict_no_old_one_is_told_and_no_output_is_smuggled_in(told: Path) -> None:
    (told / "o").mkdir()
    (told / "o/verdict.json").write_text('{"status": "PASS"}')
    done, _, outputs = _run(told, 2, run="r", out="o")
    assert (done.returncode, outputs) == (2, "")
    _, _, outputs = _run(told, 0, run="r", out="o\nstatus=PASS")
    assert outputs.splitlines()[0] == "status=FAIL"
    assert outputs.count("\n") == 3
