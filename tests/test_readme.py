"""The README is true: its commands and examples are the ones run here."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
import yaml

from edgewise import cli
from edgewise.recipe import Recipe

REPO = Path(__file__).resolve().parent.parent
README = (REPO / "README.md").read_text()
PAGES = [REPO / "README.md", REPO / "CONTRIBUTING.md", REPO / "CHANGELOG.md", *sorted((REPO / "docs").rglob("*.md"))]


def _block(tag: str) -> str:
    """The one fenced block that follows the comment ``<!-- tag -->``."""
    (found,) = re.findall(rf"<!-- {tag} -->\n+```\w+\n(.*?)```", README, re.DOTALL)
    return str(found)


def _without_install(command: str) -> str:
    install, _, rest = command.strip().partition(" && ")
    assert install.startswith("pip install ")
    return rest


def _run(command: str | list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    # The command stands beside the interpreter, also where the environment is not activated.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    shell = ["bash", "-euo", "pipefail", "-c", command] if isinstance(command, str) else command
    done = subprocess.run(
        shell, cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.mark.slow
def test_the_quickstart_makes_a_report_and_a_second_run_reuses_it(run_folder: Callable[[str], Path]) -> None:
    folder = run_folder("quickstart")
    shutil.copytree(REPO / "recipes", folder / "recipes")
    command = _without_install(_block("quickstart"))
    _run(command, folder)

    out = folder / "runs" / "digits"
    assert {"report.html", "report.md", "report.json", "run.json"} <= {path.name for path in out.iterdir()}
    assert list(out.glob("*junit*.xml"))
    again = json.loads(_run(f"{command} --json", folder).stdout)
    assert [stage["name"] for stage in again["stages"] if not stage["reused"]] == []
    measured = " ".join(stage["name"] for stage in again["stages"])
    for runtime in ("onnxruntime", "openvino", "litert"):
        assert f"{runtime}-int8" in measured


@pytest.mark.slow
def test_the_python_example_runs(tmp_path: Path) -> None:
    (tmp_path / "example.py").write_text(_block("python"))
    done = _run([sys.executable, "example.py"], tmp_path)
    assert (tmp_path / "student.onnx").stat().st_size > 0
    accuracy = re.search(r"^accuracy (\d\.\d+)$", done.stdout, re.MULTILINE)
    assert accuracy is not None
    assert float(accuracy[1]) > 0.5  # ten classes: far from chance


def test_the_test_command_is_pytest() -> None:
    assert _without_install(_block("tests")) == "python -m pytest"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPO)))
def test_recipes_in_the_pages_are_valid(page: Path) -> None:
    for text in re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL):
        data = yaml.safe_load(text)
        if "teacher" in data:  # a page may also show a part of a recipe
            Recipe.model_validate_json(json.dumps(data), strict=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPO)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPO)))
def test_files_that_the_pages_name_are_there(page: Path) -> None:
    rooms = "bench|benchmarks|compress|deploy|docs|models|recipes|scripts|src|tests|tools"
    named = re.findall(rf"(?:`|run )((?:{rooms})/[\w./-]*\w/?)(?:`| )", page.read_text())
    assert [name for name in named if not (REPO / name).exists()] == []


def test_the_readme_lists_every_command() -> None:
    listed = set(re.findall(r"^\| `edgewise (\w+)", README, re.MULTILINE))
    group = typer.main.get_command(cli.app)
    assert listed == set(getattr(group, "commands", {}))


def test_the_readme_lists_every_stage() -> None:
    schema = Recipe.model_json_schema()
    (row,) = re.findall(r"^\| `stages` \|.*$", README, re.MULTILINE)
    assert set(schema["properties"]["stages"]["items"]["discriminator"]["mapping"]) <= set(re.findall(r"`(\w+)`", row))
