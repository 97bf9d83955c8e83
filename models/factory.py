"""A user's own code by import path, ``package.module:name``: the same door for models and tasks. Torch-free."""

from __future__ import annotations

import ast
import hashlib
import importlib
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from edgewise.errors import EdgewiseError


def call(import_path: str, *values: object, error: type[EdgewiseError], arguments: dict[str, Any]) -> object:
    """What ``import_path`` returns for ``(*values, **arguments)``.

    Args:
        import_path: ``package.module:name``; the current directory is searched too.
        values: positional arguments.
        error: raised where the module, the name or the call fails.
        arguments: keyword arguments, from the recipe.
    """
    factory = resolve(import_path, error=error)
    try:
        return factory(*values, **arguments)
    except EdgewiseError:
        raise
    except Exception as cause:  # it is the user's code: anything may come
        given = ", ".join([*map(_short, values), *(f"{name}={_short(value)}" for name, value in arguments.items())])
        raise error(
            f"the call {import_path.partition(':')[2]}({given}) failed: {type(cause).__name__}: {cause}",
            where=import_path,
            hint="run it in a Python shell with these arguments, and mend it there",
        ) from cause


def _short(value: object) -> str:
    """A value as an error may show it: what is no number, text or small shape is shown by its type."""
    text = repr(value)
    return text if len(text) <= 80 else type(value).__name__


def resolve(import_path: str, *, error: type[EdgewiseError]) -> Callable[..., Any]:
    """The callable at ``package.module:name``; ``error`` where the import fails or there is no such callable."""
    module_name, _, name = import_path.partition(":")
    if not name:
        raise error(f'expected "package.module:name", got "{import_path}"', hint='write it like "my_nets.small:build"')
    try:
        module = _import(module_name)
    except Exception as cause:  # it is the user's code: anything may come
        raise error(
            f"can't import {module_name}: {type(cause).__name__}: {cause}",
            where=import_path,
            hint=f"check the spelling, and that `python -c 'import {module_name}'` works in {Path.cwd()}",
        ) from cause
    found = getattr(module, name, None)
    if not callable(found):
        what = f"has no {name}" if found is None else f"has {name}, but it is a {type(found).__name__}, not callable"
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise error(
            f"{module_name} ({getattr(module, '__file__', None) or 'no file'}) {what}",
            where=import_path,
            hint=f"name one of: {', '.join(sorted(public)[:8]) or 'none, it defines no public callable'}",
        )
    return found  # type: ignore[no-any-return]  # what the user's function returns is checked by the callers


def source_digest(import_path: str) -> str:
    """SHA-256 of the source behind ``package.module:name``: a lone module's file and those it imports from beside it,
    or every ``.py`` file of its top-level package, since a factory is seldom alone. Nothing is imported or run. Data
    that the code reads is not covered: give its version as an argument.

    Raises:
        EdgewiseError: there is no such module, or it has no file.
    """
    module_name = import_path.partition(":")[0]
    files = _sources(module_name)
    if not files:
        raise EdgewiseError(
            f"no source file for the module {module_name}", where=import_path, hint="check the spelling of the module"
        )
    digest = hashlib.sha256()
    for name, file in files:
        content = file.read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def _import(module_name: str) -> object:
    """Import with the current directory first, as ``python -m`` would; afterwards it stays last, so that a stray
    ``json.py`` there can't take the place of a library that is imported later."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(module_name)
    finally:
        sys.path.remove(here)
        if here not in sys.path:
            sys.path.append(here)


def _sources(module_name: str) -> list[tuple[str, Path]]:
    """(stable name, file) of the source; empty where the module can't be found."""
    parts = module_name.split(".")
    search: list[str] | None = None
    first: ModuleSpec | None = None
    spec: ModuleSpec | None = None
    for depth in range(len(parts)):
        spec = _find(".".join(parts[: depth + 1]), search)
        if spec is None:
            return []
        first = first or spec
        search = list(spec.submodule_search_locations or [])
    assert first is not None
    if first.submodule_search_locations is None:
        return _with_neighbours(Path(first.origin)) if first.origin and Path(first.origin).is_file() else []
    found = []
    for folder in map(Path, first.submodule_search_locations):
        found += [(file.relative_to(folder).as_posix(), file) for file in folder.rglob("*.py")]
    return sorted(found)


def _with_neighbours(file: Path) -> list[tuple[str, Path]]:
    """A lone module and the modules beside it that it imports, directly or through each other."""
    found: dict[str, Path] = {}
    waiting = [file]
    while waiting:
        file = waiting.pop()
        if file.name in found or not file.is_file():
            continue
        found[file.name] = file
        try:
            tree = ast.parse(file.read_bytes())
        except SyntaxError:
            continue  # told when it is imported
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            waiting += [file.with_name(name.partition(".")[0] + ".py") for name in names]
    return sorted(found.items())


def _find(name: str, search: list[str] | None) -> ModuleSpec | None:
    """The spec of one module, with the current directory first; its parents are not imported."""
    # By its last name: a namespace package in another looks its parent up among what is imported, and fails.
    beside = [str(Path.cwd())] if search is None else search
    here = importlib.machinery.PathFinder.find_spec(name.rpartition(".")[2], beside)
    if here is not None:
        return here
    for finder in sys.meta_path:
        if search is not None and finder is importlib.machinery.PathFinder:
            continue
        spec = finder.find_spec(name, search)
        if spec is not None:
            return spec
    return None
