"""Link the rooms into .types/edgewise, so that mypy and editors see the tree that an installed package has."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Build the links anew from the package map in pyproject.toml."""
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"]
    tree = ROOT / ".types"
    shutil.rmtree(tree, ignore_errors=True)
    # The root package is a folder of links, because the rooms must stand in it; shorter names come first.
    for name, folder in sorted(packages.items()):
        link = tree.joinpath(*name.split("."))
        if "." in name:
            link.symlink_to(ROOT / folder, target_is_directory=True)
            continue
        link.mkdir(parents=True)
        for entry in (ROOT / folder).iterdir():
            (link / entry.name).symlink_to(entry)


if __name__ == "__main__":
    main()
