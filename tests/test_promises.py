"""What the tree promises: light imports, one direction, no code in data, and one version everywhere."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import edgewise

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

REPO = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text())
ROOMS: dict[str, str] = PROJECT["tool"]["setuptools"]["package-dir"]


def _modules() -> dict[str, Path]:
    """Every module of the tree by its import name; a package's name stands for its ``__init__``."""
    found = {}
    for package in PROJECT["tool"]["setuptools"]["packages"]:
        room = max((room for room in ROOMS if f"{package}.".startswith(f"{room}.")), key=len)
        folder = REPO.joinpath(ROOMS[room], *package.removeprefix(room).split(".")[1:])
        for file in folder.glob("*.py"):
            found[package if file.stem == "__init__" else f"{package}.{file.stem}"] = file
    return found


MODULES = _modules()
IMPORTABLE = sorted(name for name in MODULES if not name.endswith(".__main__"))

# What may be absent: the runtimes, their converters and the other extras.
OPTIONAL = (
    *("ai_edge_litert", "litert_torch", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings"),
    "tflite_runtime",
    *("ai_edge_quantizer", "jax", "optuna", "tensorflow", "seqeval", "tokenizers", "transformers", "huggingface_hub"),
)
# What is there, and slow to load.
HEAVY = (
    *("lightning_fabric", "matplotlib", "nncf", "onnx", "onnxscript", "pandas", "scipy", "sklearn"),
    *("torch", "torch_pruning", "torchao"),
)

# Python source: import the modules named in argv[2] (JSON) where those in argv[1] can't be; prints {name: error}.
IMPORT_WITHOUT = '''
import importlib, json, sys, traceback

blocked, names = json.loads(sys.argv[1]), json.loads(sys.argv[2])

class Without:
    """A finder that does not find what is blocked: as if it were not installed."""

    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in blocked else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
errors = {}
for name in names:
    try:
        importlib.import_module(name)
    except BaseException:
        errors[name] = traceback.format_exc(limit=-3)
print(json.dumps(errors))
'''


def _python(code: str, *arguments: str) -> Any:
    """The JSON on the last line that ``code`` prints in a fresh interpreter, in a folder that is not the checkout."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=REPO / "tests", check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def _import_without(blocked: tuple[str, ...], names: list[str]) -> dict[str, str]:
    """Tracebacks of the modules that don't import where ``blocked`` can't be imported."""
    errors: dict[str, str] = _python(IMPORT_WITHOUT, json.dumps(blocked), json.dumps(names))
    return errors


def _all_import_without(blocked: tuple[str, ...], names: list[str]) -> None:
    errors = _import_without(blocked, names)
    assert not errors, "\n".join(errors.values())


def _light(name: str) -> bool:
    """The modules that must load without torch: the face, the bench, what devices carry, configs, losses, packages."""
    face = name.count(".") < 2
    rooms = re.match(r"edgewise\.(bench|deploy\.runtimes)(\.|$)", name)
    losses = name.startswith("edgewise.compress.losses") and not name.endswith(".base")
    package = MODULES[name].name == "__init__.py"
    return bool(face or rooms or losses or package or name.endswith(".config") or name == "edgewise.models.tasks.base")


def test_blocking_imports_really_blocks() -> None:
    assert set(_import_without(("numpy",), ["numpy", "json"])) == {"numpy"}


def test_every_module_imports_without_any_runtime() -> None:
    _all_import_without(OPTIONAL, IMPORTABLE)


def test_the_face_the_bench_and_the_configs_import_without_torch() -> None:
    light = [name for name in IMPORTABLE if _light(name)]
    assert {"edgewise.cli", "edgewise.pipeline", "edgewise.compress.config", "edgewise.bench.gate"} <= set(light)
    _all_import_without(OPTIONAL + HEAVY, light)


def test_the_agent_needs_numpy_alone() -> None:
    carried = [name for name in IMPORTABLE if name.startswith(("edgewise.bench.agent", "edgewise.deploy.runtimes"))]
    others = ("jinja2", "packaging", "PIL", "psutil", "pydantic", "rich", "safetensors", "typer", "yaml")
    _all_import_without(OPTIONAL + HEAVY + others, carried)


# Python source: run the command line's --help for each command; prints {command: [exit code, heavy modules loaded]}.
HELP = """
import contextlib, io, json, sys
import typer
from edgewise import cli

heavy = sys.argv[1]
app = next(value for value in vars(cli).values() if isinstance(value, typer.Typer))
commands = sorted(typer.main.get_command(app).commands)
result = {}
for command in [None, *commands]:
    sys.argv = ["edgewise", *([command] if command else []), "--help"]
    code = 0
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            code = cli.main()
        except SystemExit as stop:
            code = stop.code
    loaded = [name for name in json.loads(heavy) if name in sys.modules]
    result[command or ""] = [code or 0, loaded, bool(out.getvalue().strip())]
print(json.dumps(result))
"""


def test_help_of_each_command_starts_without_torch() -> None:
    result = _python(HELP, json.dumps(OPTIONAL + HEAVY))
    assert {"run", "bench", "report", "gate", "doctor"} <= set(result)
    assert [command for command, outcome in result.items() if outcome != [0, [], True]] == []


LEAVES = {"edgewise.config", "edgewise.errors", "edgewise.progress"}
# From the most particular to the most general: the first prefix that fits a module says what it may import.
MAY_IMPORT = {
    "edgewise.config": set(),
    "edgewise.errors": set(),
    "edgewise.progress": set(),
    "edgewise.models": LEAVES | {"edgewise.models"},
    "edgewise.compress": LEAVES | {"edgewise.models", "edgewise.compress"},
    "edgewise.deploy.runtimes": {"edgewise.errors", "edgewise.deploy.runtimes"},
    "edgewise.deploy": LEAVES | {"edgewise.models", "edgewise.compress", "edgewise.deploy"},
    "edgewise.bench.agent": {"edgewise.errors", "edgewise.bench.agent", "edgewise.deploy.runtimes"},
    "edgewise.bench": LEAVES | {"edgewise.bench", "edgewise.deploy.runtimes"},
    "edgewise": {"edgewise"},
}


def _within(name: str, prefix: str) -> bool:
    return f"{name}.".startswith(f"{prefix}.")


def _ours(tree: ast.Module) -> Iterator[str]:
    """Modules of edgewise that a file imports, those named by a string (``import_module``, ``-m``) too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if _within(alias.name, "edgewise"))
        elif isinstance(node, ast.ImportFrom) and node.module and _within(node.module, "edgewise"):
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES else node.module
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in MODULES:
            yield node.value


@pytest.mark.parametrize("name", MODULES)
def test_imports_run_one_way(name: str) -> None:
    allowed = next(rule for prefix, rule in MAY_IMPORT.items() if _within(name, prefix))
    imported = {target for target in _ours(ast.parse(MODULES[name].read_text())) if target != "edgewise"}
    wrong = {target for target in imported if not any(_within(target, prefix) for prefix in allowed)}
    assert not wrong, f"{name} imports {sorted(wrong)}, but may import only {sorted(allowed)}"


@pytest.mark.parametrize("name", IMPORTABLE)
def test_public_names_match_all(name: str) -> None:
    tree = ast.parse(MODULES[name].read_text())
    assigned = [
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and [getattr(t, "id", None) for t in node.targets] == ["__all__"]
    ]
    if not assigned:
        return
    public = ast.literal_eval(assigned[0])
    assert len(set(public)) == len(public)
    module = import_module(name)
    assert [entry for entry in public if not hasattr(module, entry)] == []
    if MODULES[name].name == "__init__.py":
        # What a package takes from its own files, it takes to offer it.
        offered = {
            alias.asname or alias.name
            for node in tree.body
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(f"{name}.")
            for alias in node.names
        }
        assert offered <= set(public)


BANNED_MODULES = {"cPickle", "cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}
BANNED_CALLS = {
    "eval",
    "exec",
    "os.popen",
    "os.system",
    "torch.save",
    "yaml.full_load",
    "yaml.load",
    "yaml.unsafe_load",
}
OWN_CODE = sorted({*MODULES.values(), *(REPO / "tools").glob("*.py"), *(REPO / "benchmarks").rglob("*.py")})


def _unsafe(tree: ast.Module) -> Iterator[str]:
    """Code that could run what it reads, or hide what went wrong."""
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from (f"{line}: import {name}" for name in names if name.partition(".")[0] in BANNED_MODULES)
        elif isinstance(node, ast.ExceptHandler) and node.type is None:
            yield f"{line}: bare except"
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            given = {word.arg: word.value for word in node.keywords}
            true = {name for name, value in given.items() if not (isinstance(value, ast.Constant) and not value.value)}
            if called in BANNED_CALLS:
                yield f"{line}: {called}"
            if {"shell", "allow_pickle"} & true:
                yield f"{line}: {called} with a shell, or a pickle"
            if called == "torch.load" and "weights_only" not in true:
                yield f"{line}: torch.load without weights_only=True"


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from pickle import loads",
        "eval('1')",
        "yaml.load(text)",
        "subprocess.run('ls', shell=True)",
        "np.load(path, allow_pickle=True)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.save(model, path)",
        "try:\n    pass\nexcept:\n    pass",
    ],
)
def test_unsafe_code_is_noticed(code: str) -> None:
    assert list(_unsafe(ast.parse(code)))


@pytest.mark.parametrize(
    "code", ["model.eval()", "yaml.safe_load(t)", "torch.load(p, weights_only=True)", "np.load(p)"]
)
def test_safe_code_passes(code: str) -> None:
    assert not list(_unsafe(ast.parse(code)))


@pytest.mark.parametrize("file", OWN_CODE, ids=lambda file: str(file.relative_to(REPO)))
def test_nothing_runs_what_it_reads(file: Path) -> None:
    assert list(_unsafe(ast.parse(file.read_text()))) == []


def test_one_version_everywhere() -> None:
    newest = re.search(r"^## \[?(\d+\.\d+\.\d+)", (REPO / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert edgewise.__version__ == PROJECT["project"]["version"] == newest[1]


def _tracked() -> list[Path]:
    """Files that git has or would take."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPO,
        capture_output=True,
        check=False,
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    return [REPO / name for name in listed.stdout.decode().split("\0") if name and (REPO / name).is_file()]


def test_no_machine_paths_in_the_tree() -> None:
    # Absolute paths of the machines it was built on; a path under /tmp is one too.
    machine = re.compile(rb"(?<![\w.])/(?:work|farm|root|home/\w+|Users/\w+|opt/wheels|opt/pypi|tmp/\w+)/")
    found = [
        f"{file.relative_to(REPO)}: {match[0].decode()}"
        for file in _tracked()
        if b"\0" not in (content := file.read_bytes())
        for match in machine.finditer(content)
    ]
    assert found == []
