"""The command line. Everything heavy is imported inside the commands: ``--help`` answers at once, without torch."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgewise.errors import NothingMeasured
from edgewise.guard import guard

if TYPE_CHECKING:
    from edgewise.console import Console

app = typer.Typer(
    name="edgewise",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Distil, prune, quantize and convert a model for edge devices, measure the files, and judge them by a budget.",
    epilog="Exit codes: 0 pass, 1 fail, 2 usage or input, 3 invalid, 4 inconclusive, 5 no device.",
)
KEPT_LAUNCHES = "finished launches are kept, and the same command goes on from there"
KEPT = "finished stages are kept, and the same command goes on from there"


def _debug(context: typer.Context, value: bool) -> bool:
    """``--debug`` counts before the command and after it."""
    context.meta["edgewise.debug"] = value or context.meta.get("edgewise.debug", False)
    return bool(context.meta["edgewise.debug"])


def _version(value: bool) -> None:
    if value:
        from edgewise import __version__

        print(f"edgewise {__version__}")
        raise typer.Exit


def _profiles(incomplete: str) -> list[str]:
    from edgewise.profiles import PROFILES

    return [name for name in PROFILES if name.startswith(incomplete)]


def _families(incomplete: str) -> list[str]:
    from edgewise.init import FAMILIES

    return [name for name in FAMILIES if name.startswith(incomplete)]


Debug = Annotated[bool, typer.Option("--debug", callback=_debug, help="Show the traceback of an error.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing but it, on stdout.")]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.")]


@contextlib.contextmanager
def _console(json: bool) -> Iterator[Console]:
    """A console for long work; whatever libraries print meanwhile goes to stderr."""
    from edgewise.console import make_console
    from edgewise.output import stdout_for_results

    with stdout_for_results(), contextlib.closing(make_console(json)) as console:
        yield console


@app.callback()
def _root(
    debug: Debug = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML recipe; 'edgewise init' writes one.")],
    profile: Annotated[
        str | None,
        typer.Option(
            "--for",
            metavar="PROFILE",
            autocompletion=_profiles,
            help="Choose what the recipe leaves open for phone, jetson, raspberry-pi or x86.",
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where relative paths lead. (default: beside the recipe)")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="The run's folder. (default: runs/NAME)")] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Run a recipe: train, prune, distil, quantize, convert, measure, judge, report.

    Finished stages are reused; an interrupted one goes on from its last checkpoint.

    The verdict is printed; 'edgewise gate' makes an exit code of it. A file that can't be made stops no other; the exit
    code is 2 then.
    """
    with guard(debug, kept=KEPT):
        from edgewise.output import print_json
        from edgewise.recipe_file import load_recipe
        from edgewise.results import show_run

        with _console(json) as console:
            loaded = load_recipe(recipe, data=data, profile=profile)
            for choice in loaded.choices:
                console.line(choice)
            folder = out or Path("runs") / loaded.recipe.name
            from edgewise import pipeline

            result = pipeline.run(loaded, folder, console)
        if os.environ.get("RANK", "0") != "0":  # one process of a torchrun group speaks for all
            return
        if json:
            print_json(result.summary())
        else:
            show_run(result)
        result.check()


@app.command()
def report(run: Run, json: Json = False, debug: Debug = False) -> None:
    """Write the report of a finished run, or of what 'bench --out' kept, again: HTML, Markdown, JSON, JUnit."""
    with guard(debug):
        from edgewise import reported
        from edgewise.bench.report.write import FILES
        from edgewise.output import print_json

        with _console(json):
            page = reported.report(run)
        files = [page.parent / name for name in FILES if (page.parent / name).exists()]
        if json:
            print_json({"report": str(page), "files": [str(path) for path in files]})
        else:
            for path in [page, *(path for path in files if path != page)]:
                print(path)


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="The release before: a run, or a folder of 'bench --out'.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="The release after: one of the same.")],
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page, too.")] = None,
    anyway: Annotated[bool, typer.Option("--anyway", help="Compare even what comes from different devices.")] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Set two releases side by side: answers paired by sample, sizes, memory, times, settings, verdicts.

    Times are of different runs, so nothing is claimed of them: 'edgewise gate --against' measures both again.
    """
    with guard(debug):
        from edgewise import compare_releases as room
        from edgewise.output import print_json

        with _console(json):
            found = room.compare_releases(a, b, anyway=anyway)
        if html is not None:
            html.write_text(room.page(found), encoding="utf-8")
        if json:
            print_json(found)
        else:
            room.show(found)


@app.command()
def gate(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="The folder of a finished run, or of 'edgewise bench --out'.")
    ],
    budget: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A YAML budget. (default: the one in the run's recipe)")
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="RELEASE",
            help="The release before: a run's or a bench's folder. Both are measured again. 'none': there is none.",
        ),
    ] = None,
    on_inconclusive: Annotated[
        str | None, typer.Option(metavar="fail|warn|pass", help="What INCONCLUSIVE makes of the exit code.")
    ] = None,
    on_invalid: Annotated[
        str | None, typer.Option(metavar="fail|retry:N", help="Whether to measure again what is INVALID.")
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only say what each limit could be told from so few samples.")
    ] = False,
    json: Json = False,
    junit: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the checks as JUnit XML, too.")] = None,
    verdict: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the verdict as JSON, too.")] = None,
    github: Annotated[
        bool, typer.Option("--github", help="Annotate, and add to the step's summary. (default: in GitHub Actions)")
    ] = False,
    debug: Debug = False,
) -> None:
    """Judge what was measured by a budget, and say it in the exit code.

    0 pass, 1 fail, 2 usage or input, 3 invalid, 4 inconclusive, 5 no device.
    """
    with guard(debug):
        from edgewise import gating
        from edgewise.output import print_json
        from edgewise.results import show_prospects, show_verdict

        if plan:
            with _console(json):
                rows = gating.plan_gate(run, budget)
            if json:
                print_json(gating.to_json(rows))
            else:
                show_prospects(rows)
            raise typer.Exit(0)
        with _console(json) as console:
            console.stage("gate")
            judged = gating.gate_run(
                run,
                budget,
                against=against,
                on_inconclusive=on_inconclusive,
                on_invalid=on_invalid,
                tick=console.tick,
            )
        told = judged.verdict.to_json()
        if json:
            print_json(told)
        else:
            show_verdict(told)
        gating.write(judged, junit=junit, verdict=verdict, github=github, stdout_is_free=not json)
        raise typer.Exit(judged.verdict.exit_code)


@app.command()
def bench(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE... | RUN", help="Files to measure: .onnx, .xml or .tflite; or a finished run."),
    ],
    device: Annotated[
        str | None,
        typer.Option(metavar="DEVICE", help="local, ssh://[user@]host[:port] or adb://SERIAL. (default: local)"),
    ] = None,
    inputs: Annotated[
        Path | None, typer.Option(metavar="X.npy", help="float32 (N, C, H, W). (default: random numbers)")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads a file may use. (default: 1)")] = None,
    launches: Annotated[int | None, typer.Option(min=1, help="Fresh processes a file, at least.")] = None,
    precision: Annotated[
        float | None, typer.Option(help="Measure until each p50 is known to this part of it, such as 0.02.")
    ] = None,
    scenario: Annotated[
        list[str] | None,
        typer.Option(help="Also under load: single_stream, multi_stream, server, offline or sweep; may be repeated."),
    ] = None,
    p99_ms: Annotated[
        float | None, typer.Option("--p99-ms", help="server: the budget of p99; sweep: where it ends, too.")
    ] = None,
    qps: Annotated[float | None, typer.Option(help="server: only this many queries a second, not the most.")] = None,
    streams: Annotated[
        int | None, typer.Option(help="server, offline, multi_stream: inferences that run at once. (default: 1)")
    ] = None,
    engine: Annotated[
        str | None, typer.Option(metavar="edgewise|loadgen", help="Whose scheduler: ours, or MLPerf's LoadGen.")
    ] = None,
    benchmark_model: Annotated[
        Path | None, typer.Option(metavar="PATH", help="adb: LiteRT's benchmark_model for the phone's CPU.")
    ] = None,
    taskset: Annotated[str | None, typer.Option(metavar="MASK", help="adb: only these CPUs, such as f0.")] = None,
    trtexec: Annotated[
        str | None, typer.Option(metavar="PATH", help="Time .engine files with this trtexec, on this machine.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep the measurements here, for gate, report and compare.")
    ] = None,
    selftest: Annotated[
        bool, typer.Option("--selftest", help="One file against itself: how small a slowdown is found here?")
    ] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure files side by side, each in its own runtime and fresh processes: latency, memory, load time, size.

    The files of a finished run are measured with its test samples, as its recipe says but for what is given here.

    0 measured, 2 usage or input, 3 a file could not be measured, 5 no device.
    """
    with guard(debug, kept=KEPT_LAUNCHES if out is not None else ""):
        from edgewise import bench_scenarios, bench_selftest, bench_tools
        from edgewise.bench.config import Bench
        from edgewise.bench_files import show, summary
        from edgewise.bench_run import bench_any, configured
        from edgewise.output import print_json

        load = {"p99_ms": p99_ms, "qps": qps, "streams": streams, "engine": engine}
        asked: dict[str, Any] = {"device": device, "threads": threads, "launches": launches, "precision": precision}
        asked["scenarios"] = bench_scenarios.asked_scenarios(scenario or (), load)
        with _console(json) as console:
            console.stage("measure")
            if selftest:
                other_tools = {"--benchmark-model": benchmark_model, "--taskset": taskset, "--trtexec": trtexec}
                bench_selftest.refuse({"--scenario": scenario, **other_tools})
                config = configured(Bench(), {key: value for key, value in asked.items() if value is not None})
                found = bench_selftest.against_itself(files, inputs, config, out, console.tick)
                (print_json if json else bench_selftest.show)(found)
                return
            tools = bench_tools.Tools(benchmark_model, taskset, trtexec)
            other = bench_tools.bench_with_tool(files, asked, inputs, tools, out, console.tick)
            table = other or summary(bench_any(files, inputs, asked, out, console.tick))
        if json:
            print_json(table)
        else:
            (show if other is None else bench_tools.show)(table)
        raise typer.Exit(NothingMeasured.exit_code if any(row["error"] for row in table["files"]) else 0)


@app.command()
def advise(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="A recipe (its teacher), a saved model's folder, or an .onnx file.")
    ],
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where a recipe's relative paths lead. (default: beside it)")
    ] = None,
    samples: Annotated[int, typer.Option(min=16, help="Training samples that each layer's cost is measured on.")] = 256,
    threads: Annotated[int, typer.Option(min=1, help="Threads that ONNX Runtime may use.")] = 1,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Say where a model's time and bytes go, what INT8 and pruning would cost each layer, and what to try first."""
    with guard(debug):
        from edgewise.advise import advise as look_at
        from edgewise.advise import show
        from edgewise.output import print_json

        with _console(json) as console:
            console.stage("advise")
            found = look_at(model, data=data, samples=samples, threads=threads, tick=console.tick)
        if json:
            print_json(found.to_json())
        else:
            show(found)


@app.command()
def inspect(
    one: Annotated[
        Path,
        typer.Argument(metavar="A", help="What is right: a saved model's folder, .onnx, .xml, .tflite, a .trt folder."),
    ],
    other: Annotated[Path, typer.Argument(metavar="B", help="What is judged: one of the same, of the same model.")],
    inputs: Annotated[
        Path | None,
        typer.Option(metavar="X.npy", help="float32 (N, C, H, W). (default: those of A's or B's run, else random)"),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="How many samples, from the first on.")] = 32,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page with the picture, too.")] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Compare two forms of one model layer by layer, and name the first bad layer."""
    with guard(debug):
        from edgewise import inspect_files as room
        from edgewise.output import print_json

        with _console(json) as console:
            console.stage("inspect")
            table, warnings = room.inspect_files(one, other, inputs, samples, console.tick)
            for warning in warnings:
                console.warn(warning)
        if html is not None:
            html.write_text(room.page(table, warnings, other), encoding="utf-8")
        if json:
            print_json({**table, "warnings": warnings})
        else:
            room.show(table)


@app.command()
def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A graph: .onnx or .tflite.")],
    runtime: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Ask for this runtime. (default: those that the file is made for)"),
    ] = None,
    float_layer: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A layer, or a glob, that is meant to be in float.")
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Hold a file against what its runtimes demand: what they would refuse, or run in float. Nothing is run.

    0 nothing found, 1 findings.
    """
    with guard(debug):
        from edgewise.check import check_file, show
        from edgewise.output import print_json, stdout_for_results

        with stdout_for_results():
            checked = check_file(file, runtime or (), float_layer or ())
        if json:
            print_json(checked.to_json())
        else:
            show(checked)
        raise typer.Exit(0 if checked.clean else 1)


@app.command()
def doctor(
    device: Annotated[
        str | None, typer.Option(metavar="DEVICE", help="Look at a device instead: ssh://[user@]host[:port].")
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Say which runtimes work here, what this machine is like, and how to get what is missing."""
    with guard(debug):
        from edgewise import doctor as room
        from edgewise.output import print_json, stdout_for_results

        with stdout_for_results():
            health = room.examine() if device is None or device == "local" else room.examine_device(device)
        if json:
            print_json(health.as_json())
        elif isinstance(health, room.Health):
            room.show(health)
        else:
            room.show_device(health)


@app.command()
def init(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", autocompletion=_families, help="cifar_resnet, mobilenet_v2, vit or factory (your own)."
        ),
    ],
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Where to write it. (default: MODEL.yaml)")] = None,
    debug: Debug = False,
) -> None:
    """Write a commented recipe to start from; a file that exists is never touched."""
    with guard(debug):
        from edgewise.init import write_starter

        path = write_starter(model, out or Path(f"{model}.yaml"))
        print(path)
        typer.echo(f"next: edgewise run {path}", err=True)


def main() -> None:
    """The ``edgewise`` command."""
    # A terminal that can't show a character must not cost the result.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    app(prog_name="edgewise")
