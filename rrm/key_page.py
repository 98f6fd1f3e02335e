"""All keys of the configuration as a page of Markdown, from the models and recipes: `docs/configuration.md`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from rrm.config import flat, json_schema
from rrm.recipes import METHOD_RECIPES, NETWORK_RECIPES, ONE_STEP_RECIPES, RANDOM_WALK_RECIPE

Schema = Mapping[str, Any]
_BEGIN = """# All keys of the configuration

A run is one YAML file, or several of which later ones are put over earlier ones. `null` takes out an entry of a section
with names, such as a network of `step_two`. Write `1.0e-3`: YAML takes `1e-3` for a text. `rrm check FILE...` names all
mistakes at once and prints the configuration with its recipes applied; `config.yaml` has a comment at each key.

A default of *recipe* is that of the recipe ([below](#defaults-of-the-recipes)), and has to be set where there is
none, as in `classifier.train`. NAME is a name of your own. This page is made of `rrm/config.py` by `make schema`.
"""
_RECIPES: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "`one_step`, by `recipe`": ONE_STEP_RECIPES,
    "`step_two.NAME` and `bounds.NAME`, by `recipe`": NETWORK_RECIPES,
    "`methods.NAME`, by `kind`": METHOD_RECIPES,
    "`pseudo_masks.NAME`, where it has a `random_walk`": {"random_walk": RANDOM_WALK_RECIPE},
}
_RECIPED = re.compile(r"`(one_step|step_two|bounds|methods|pseudo_masks\.NAME\.random_walk)\b")
_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def key_page() -> str:
    """The page: a table a section, in the order in which they are met, and the defaults of the recipes.

    Example:
        >>> "| `ratio` | number ≥ 0, ≤ 1 | *recipe* | share of each class's pixels" in key_page()
        True
    """
    schema = json_schema()
    parts = [_BEGIN, _table(schema, schema["$defs"], "**none: set it**")]
    for name, places in _places(schema).items():
        section = schema["$defs"][name]
        missing = "*recipe*" if any(_RECIPED.match(place) for place in places) else "**none: set it**"
        parts += [f"## {name}\n", f"{section['description'].splitlines()[0]} At {', '.join(places)}.\n"]
        parts.append(_table(section, schema["$defs"], missing))
    parts.append("## Defaults of the recipes\n")
    for title, recipes in _RECIPES.items():
        parts += [f"### {title}\n", _recipe_table(recipes)]
    return "\n".join(parts).rstrip()


def _places(schema: Schema) -> dict[str, list[str]]:
    """Sections by name, with the keys at which each one stands, breadth first."""
    places: dict[str, list[str]] = {}
    waiting = [("", schema)]
    while waiting:
        key, section = waiting.pop(0)
        for name, entry in section.get("properties", {}).items():
            for target, named in _targets(entry):
                path = f"{key}.{name}".lstrip(".") + ".NAME" * named
                places.setdefault(target, []).append(f"`{path}`")
                waiting.append((path, schema["$defs"][target]))
    return places


def _targets(entry: Schema, named: bool = False) -> Iterator[tuple[str, bool]]:
    """Sections that an entry may hold, and whether under names."""
    if "$ref" in entry:
        yield entry["$ref"].rpartition("/")[2], named
    for each in [*entry.get("anyOf", []), *entry.get("oneOf", [])]:
        yield from _targets(each, named)
    if values := _named_values(entry):
        yield from _targets(values, True)


def _named_values(entry: Schema) -> Any:
    """What an entry holds under names of the user's own; None where it does not."""
    named = [entry.get("additionalProperties"), *entry.get("patternProperties", {}).values()]
    return next((each for each in named if isinstance(each, dict)), None)


def _table(section: Schema, sections: Schema, missing: str) -> str:
    """The keys of a section; `missing` stands where one has no default."""
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for key, entry in section["properties"].items():
        default = _default(entry, sections) if "default" in entry else missing
        meaning = entry.get("description") or _meaning(entry, sections)
        lines.append(f"| `{key}` | {_type(entry)} | {default} | {meaning.replace('|', chr(92) + '|')} |")
    return "\n".join([*lines, ""])


def _meaning(entry: Schema, sections: Schema) -> str:
    """First line of the section that an entry holds."""
    return next((sections[name]["description"].splitlines()[0].rstrip(".") for name, _ in _targets(entry)), "")


def _type(entry: Schema) -> str:
    """The type of an entry in words, with its range."""
    if "$ref" in entry:
        name = entry["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "const" in entry:
        return _code(entry["const"])
    if "enum" in entry:
        return ", ".join(map(_code, entry["enum"]))
    if choices := [*entry.get("anyOf", []), *entry.get("oneOf", [])]:
        return " or ".join(map(_type, choices))
    if entry.get("type") == "array":
        fixed = entry.get("minItems") == entry.get("maxItems") and "minItems" in entry
        count = f"{entry['minItems']} of: " if fixed else ""
        return f"list of {count}{_type(entry['items'])}"
    if values := _named_values(entry):
        return f"NAME: {_type(values)}"
    limits = [f"{sign} {entry[bound]}" for bound, sign in _BOUNDS.items() if bound in entry]
    words = {"object": "mapping", "boolean": "true or false", "string": "text"}
    kind = str(entry.get("type", "any"))
    return f"{words.get(kind, kind)} {', '.join(limits)}".strip()


def _default(entry: Schema, sections: Schema) -> str:
    """A default; of a section only what differs from its own defaults."""
    value = entry["default"]
    target = next((name for name, named in _targets(entry) if not named), None)
    if not isinstance(value, dict) or target is None:
        return _code(value) if not isinstance(value, dict) else ", ".join(map(_code, value)) or "empty"
    own = sections[target]["properties"]
    changed = {key: part for key, part in value.items() if own[key].get("default") != part}
    return _code(changed) if changed else "its defaults"


def _recipe_table(recipes: Mapping[str, Mapping[str, Any]]) -> str:
    values = {name: flat(recipe) for name, recipe in recipes.items()}
    keys = dict.fromkeys(key for recipe in values.values() for key in recipe)
    lines = ["| key | " + " | ".join(f"`{name}`" for name in values) + " |", "|---" * (len(values) + 1) + "|"]
    for key in keys:
        cells = [_code(recipe[key]) if key in recipe else "" for recipe in values.values()]
        lines.append(f"| `{key}` | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _code(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return f"`{text}`"
