"""Write the tables of docs/recipe.md from the configs themselves, so that the reference can't fall behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from edgewise.recipe import Recipe

PAGE = Path(__file__).resolve().parent.parent / "docs" / "recipe.md"
BEGIN, END = "<!-- tables: python tools/recipe_reference.py -->\n", "<!-- end of tables -->\n"
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
SIMPLE = {
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "boolean": "true or false",
    "null": "nothing",
}
Schema = dict[str, Any]


def kind(schema: Schema) -> str | None:
    """The word that chooses this config among its siblings."""
    chosen: str | None = schema["properties"].get("kind", {}).get("const")
    return chosen


def title(name: str, schema: Schema) -> str:
    """How a table is called."""
    return f"{name}: `kind: {kind(schema)}`" if kind(schema) else name


def anchor(heading: str) -> str:
    """The link that a heading gets on a page."""
    return "#" + "".join(c for c in heading.lower().replace(" ", "-") if c.isalnum() or c in "-_")


def link(reference: str, tables: dict[str, Schema]) -> str:
    """A link to the table that a schema refers to."""
    name = reference.rpartition("/")[2]
    text = f"`{kind(tables[name])}`" if kind(tables[name]) else name
    return f"[{text}]({anchor(title(name, tables[name]))})"


def words(schema: Schema, tables: dict[str, Schema]) -> str:
    """What a value may be."""
    if "$ref" in schema:
        if schema["$ref"].rpartition("/")[2] not in tables:
            return "any value"
        return link(schema["$ref"], tables)
    for key in ("anyOf", "oneOf"):
        if key in schema:
            # None is told by the default.
            return " or ".join(words(choice, tables) for choice in schema[key] if choice.get("type") != "null")
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if schema.get("type") == "array":
        items = schema.get("items") or schema.get("prefixItems", [{}])[0]
        return f"list of: {words(items, tables)}"
    if schema.get("type") == "object":
        return "a mapping"
    if "type" not in schema:
        return "any value"
    if schema.get("format") == "path":
        return "path"
    bounds = [f"{sign} {schema[key]:g}" for key, sign in BOUNDS.items() if key in schema]
    return " ".join([SIMPLE[schema["type"]], ", ".join(bounds)]).strip()


def default(schema: Schema, required: bool) -> str:
    """The default as YAML; a whole mapping is left to its own table."""
    if required:
        return "**needed**"
    value = schema.get("default")
    if value is None:
        return "none"
    if isinstance(value, dict) and value:
        return "its own defaults"
    # A bare value is followed by a line of its own, the end mark of YAML.
    return f"`{yaml.safe_dump(value, default_flow_style=True, width=1000, sort_keys=False).splitlines()[0]}`"


def table(name: str, schema: Schema, tables: dict[str, Schema]) -> str:
    """One config: its heading, its docstring, a row for each key."""
    rows = ["| key | what it may be | default | meaning |", "|---|---|---|---|"]
    for key, field in schema["properties"].items():
        if key == "kind":
            continue
        needed = key in schema.get("required", [])
        cells = [f"`{key}`", words(field, tables), default(field, needed), field.get("description", "")]
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    about = " ".join(schema.get("description", "").split()).replace("``", "`")
    return f"### {title(name, schema)}\n\n{about}\n\n" + ("\n".join(rows) + "\n" if len(rows) > 2 else "No keys.\n")


def tables() -> str:
    """All tables, in the order in which a reader of Recipe meets them."""
    schema = Recipe.model_json_schema()
    # What has no keys, such as pydantic's "any JSON", needs no table.
    defs: dict[str, Schema] = {name: part for name, part in schema.pop("$defs").items() if "properties" in part}
    order, waiting = ["Recipe"], [schema]
    while waiting:
        text = json.dumps(waiting.pop(0))
        for name in sorted(defs, key=lambda name: text.find(f'"#/$defs/{name}"')):
            if f'"#/$defs/{name}"' in text and name not in order:
                order.append(name)
                waiting.append(defs[name])
    defs["Recipe"] = schema
    return "\n".join(table(name, defs[name], defs) for name in order)


def page(current: str) -> str:
    """``current`` with its tables made anew."""
    before, _, rest = current.partition(BEGIN)
    return f"{before}{BEGIN}\n{tables()}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
