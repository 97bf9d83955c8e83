"""``edgewise bench --scenario``: what the options ask for, and the table of what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from edgewise.bench import format as say
from edgewise.bench.record import Results
from edgewise.bench.report.load import scenario_rows
from edgewise.bench.scenario_config import MultiStream, Offline, Scenario, Server, SingleStream, Sweep
from edgewise.config import Config
from edgewise.errors import MeasureError
from edgewise.output import print_table

KINDS: dict[str, type[Config]] = {
    "single_stream": SingleStream,
    "multi_stream": MultiStream,
    "server": Server,
    "offline": Offline,
    "sweep": Sweep,
}


def asked_scenarios(kinds: Sequence[str], options: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """The scenarios called ``kinds``, ``single-stream`` or ``single_stream``, as keys of ``bench``; None for none.

    Args:
        kinds: in the order in which they run.
        options: ``p99_ms``, ``qps``, ``streams``, ``engine``, ...: each goes to all that have such a key; None for what
            was not given.

    Raises:
        MeasureError: no such kind, a value that no scenario takes, or one that is missing.
    """
    given = {key: value for key, value in options.items() if value is not None}
    names = [kind.replace("-", "_") for kind in kinds]
    for name in names:
        if name not in KINDS:
            raise MeasureError(f"expected one of {', '.join(KINDS)}, got {name!r}", where="--scenario")
    for key in given:
        if not any(key in KINDS[name].model_fields for name in names):
            takers = ", ".join(name for name, kind in KINDS.items() if key in kind.model_fields)
            raise MeasureError(
                "no scenario asked for takes it", where=option(key), hint=f"add --scenario with one of: {takers}"
            )
    asked = [
        {"kind": name, **{key: value for key, value in given.items() if key in KINDS[name].model_fields}}
        for name in names
    ]
    checked: TypeAdapter[Scenario] = TypeAdapter(Scenario)
    for one in asked:
        try:
            checked.validate_python(one)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise MeasureError(f"{one['kind']}: {first['msg'].lower()}", where=option(str(first["loc"][-1]))) from error
    return asked or None


def option(key: str) -> str:
    """How the command line calls a key."""
    return "--" + key.replace("_", "-")


def table(results: Results) -> list[dict[str, Any]]:
    """A row a file and scenario: samples a second and latencies of queries, with intervals where there are any."""
    return scenario_rows(results)


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print ``table`` for a person; nothing where nothing was asked for."""
    if not rows:
        return
    print_table(
        ("file", "scenario", "in flight", "samples a second", "95 % interval", "p50", "p99", "p99 at most", "queries"),
        [
            (
                row["file"],
                row["name"],
                str(row["in_flight"]),
                _said(row["qps"]) if row["valid"] else "not valid",
                say.span(row["qps"], "per s") if row["valid"] and row["qps"] else say.NONE,
                say.quantity(row["p50_ms"], "ms"),
                say.quantity(row["p99_ms"], "ms"),
                say.quantity(row["p99_upper_ms"], "ms"),
                str(row["queries"]),
            )
            for row in rows
        ],
    )
    for row in rows:
        if row["note"]:
            print(f"note: {row['file']}, {row['name']}: {row['note']}")


def _said(qps: Mapping[str, float] | None) -> str:
    return say.quantity(None if qps is None else qps["value"], "per s")
