"""The wheel holds what the rooms hold: nothing forgotten in the hand-written list of packages, nothing else shipped."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

REPO = Path(__file__).resolve().parent.parent
SETUP = tomllib.loads((REPO / "pyproject.toml").read_text())["tool"]["setuptools"]
LOCAL = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "runs", "nncf_debug")


def _on_disk() -> dict[str, Path]:
    """Files in the rooms by the name they must have in the wheel."""
    files = {}
    for package, folder in SETUP["package-dir"].items():
        for file in (REPO / folder).rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts:
                files["/".join([*package.split("."), *file.relative_to(REPO / folder).parts])] = file
    return files


def test_packages_on_disk_are_the_packages_listed() -> None:
    folders = {name.rpartition("/")[0].replace("/", ".") for name in _on_disk() if name.endswith(".py")}
    assert sorted(SETUP["packages"]) == sorted(folders)
    missing = [name for name in folders if f"{name.replace('.', '/')}/__init__.py" not in _on_disk()]
    assert missing == []


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the tree, so that no stale build folder gets in and none is left behind."""
    root = tmp_path_factory.mktemp("wheel")
    shutil.copytree(REPO, root / "tree", ignore=LOCAL)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", root, "."]
    built = subprocess.run(command, cwd=root / "tree", capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    (path,) = root.glob("edgewise-*.whl")
    return path


def test_the_wheel_holds_the_rooms_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    shipped = {name for name in names if ".dist-info/" not in name}
    assert shipped == set(_on_disk())
    assert "edgewise/py.typed" in shipped


def test_the_wheel_brings_the_command_and_the_licence(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (entry,) = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
    assert "edgewise = edgewise.cli:main" in archive.read(entry).decode()
    assert any(name.endswith("licenses/LICENSE") for name in archive.namelist())
