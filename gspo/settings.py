"""From words to settings: dataclass defaults, then one TOML file, then `--a.b VALUE`; nothing else anywhere.

Validation happens once, at the edge (`load_config`); unknown and ill-typed keys are refused with the nearest name.
"""

import copy
import dataclasses
import difflib
import json
import re
import tomllib
import types
import typing
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from gspo.advantages import Advantage
from gspo.config import RunConfig
from gspo.corrections import AnyCorrection
from gspo.objectives import Objective, Term
from gspo.phases import Phase
from gspo.policies.config import PolicyConfig
from gspo.samplers.config import SamplerConfig

Node = dict[str, Any]
"""A nested table of settings, as TOML gives it."""


def load_config(recipe: Path | None = None, overrides: typing.Sequence[str] = ()) -> RunConfig:
    """Defaults, then the recipe, then overrides such as ["--steps", "10", "--objective.clip_low", "2e-4"].

    Without a recipe the base is the embedded default, recipes/addition.toml.
    """
    path = recipe if recipe is not None else recipe_folder() / "addition.toml"
    return validate(apply_overrides(read_recipe(path), parse_overrides(overrides)), str(path))


def recipe_folder() -> Path:
    """The recipes shipped inside the package."""
    return Path(__file__).parent / "recipes"


def find_recipe(name: str) -> Path:
    """A recipe file by path, or a shipped one by name ("smollm2-chain-sum", with or without folder and ".toml")."""
    path = Path(name)
    if path.is_file():
        return path
    shipped = {p.stem: p for p in sorted(recipe_folder().glob("*.toml"))}
    if path.stem in shipped and path.parent.name in ("", "recipes"):
        return shipped[path.stem]
    raise ValueError(f"recipe {name!r} does not exist{nearest(path.stem, shipped)}; `gspo recipes` lists them")


def read_recipe(path: Path) -> Node:
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"recipe {str(path)!r} does not exist") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from None


def parse_overrides(words: typing.Sequence[str]) -> list[tuple[str, Any]]:
    """["--a.b", "1", "--c=x"] -> [("a.b", 1), ("c", "x")]. Values are TOML values; anything else is text."""
    pairs: list[tuple[str, Any]] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or len(word) == 2:
            raise ValueError(f"expected an override such as --steps 10, got {word!r}")
        key, equals, text = word[2:].partition("=")
        if not equals:
            if not rest:
                raise ValueError(f"--{key} needs a value")
            text = rest.pop(0)
        pairs.append((key.replace("-", "_"), toml_value(text)))
    return pairs


def toml_value(text: str) -> Any:
    """A TOML value, or the text itself."""
    try:
        return tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        return text


def apply_overrides(table: Node, pairs: typing.Sequence[tuple[str, Any]]) -> Node:
    """Settings with dotted keys set; lists are addressed by position (`--rewards.0.weight 2`)."""
    table = copy.deepcopy(table)
    for key, value in pairs:
        node: Any = table
        *parents, last = key.split(".")
        for part in parents:
            node = _child(node, part, key)
        if isinstance(node, list):
            node[_position(node, last, key)] = value
        elif parents and last == "name" and isinstance(node.get("name"), str) and node["name"] != value:
            node.clear()  # another objective: its fields start from that class's defaults
            node["name"] = value
        else:
            node[last] = value
    return table


def _child(node: Any, part: str, key: str) -> Any:
    if isinstance(node, list):
        return node[_position(node, part, key)]
    if isinstance(node.get(part), str):
        node[part] = {"name": node[part]}  # objective = "gspo" is short for {name = "gspo"}
    child = node.setdefault(part, {})
    if not isinstance(child, dict | list):
        raise ValueError(f"--{key}: {part} is a value, not a table")
    return child


def _position(node: list[Any], part: str, key: str) -> int:
    if not part.isdigit() or int(part) >= len(node):
        raise ValueError(f"--{key}: {part!r} is not a position in a list of {len(node)}")
    return int(part)


def nearest(word: str, options: typing.Iterable[str]) -> str:
    """ "; did you mean 'x'?", or nothing."""
    close = difflib.get_close_matches(word, list(options), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def validate(table: Node, where: str = "settings") -> RunConfig:
    """A RunConfig, or one line that names the key, what is wrong, and the nearest name."""
    table = _named(table, RunConfig)
    _refuse_unknown(table, RunConfig, "", where)
    try:
        return ADAPTER.validate_python(table)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"] if part not in NAMES) or "settings"
        message = first["msg"].removeprefix("Value error, ")
        got = "" if first["type"] in ("value_error", "missing") else f" (got {first.get('input')!r})"
        raise ValueError(f"{where}: {key}: {message}{got}") from None


def _named(value: Any, kind: Any) -> Any:
    """Settings with every choice written out: `objective = "gspo"` is a table with that name, and a table without a
    name refines the field's default."""
    if isinstance(value, list) and typing.get_origin(kind) is tuple:
        return [_named(item, typing.get_args(kind)[0]) for item in value]
    members = _members(kind)
    if members and isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, dict):
        return value
    chosen = members.get(value.get("name"), kind) if members else kind
    if not dataclasses.is_dataclass(chosen):
        return value
    hints = typing.get_type_hints(chosen, include_extras=True)
    out = {}
    for field in dataclasses.fields(chosen):
        if field.name not in value:
            continue
        item = value[field.name]
        if isinstance(item, dict) and _members(hints[field.name]):
            item = {"name": field.default_factory().name, **item}
        out[field.name] = _named(item, hints[field.name])
    return {**value, **out}


def _members(kind: Any) -> dict[str, Any]:
    """Classes of a discriminated union by name; nothing for other kinds."""
    kind = typing.get_args(kind)[0] if typing.get_origin(kind) is typing.Annotated else kind
    if typing.get_origin(kind) not in (typing.Union, types.UnionType):
        return {}
    members = [m for m in typing.get_args(kind) if dataclasses.is_dataclass(m)]
    return {name: m for m in members for name in typing.get_args(typing.get_type_hints(m)["name"])}


def _refuse_unknown(value: Any, kind: Any, path: str, where: str) -> None:
    """Walk settings beside their classes; the first unknown key is an error with the nearest name."""
    kind = _resolve(kind, value, f"{where}: {path.rstrip('.') or 'settings'}")
    if isinstance(value, list) and typing.get_origin(kind) is tuple:
        for i, item in enumerate(value):
            _refuse_unknown(item, typing.get_args(kind)[0], f"{path}{i}.", where)
    if not (isinstance(value, dict) and dataclasses.is_dataclass(kind)):
        return
    hints = typing.get_type_hints(kind, include_extras=True)
    fields = {f.name for f in dataclasses.fields(kind)}
    for key, item in value.items():
        if key not in fields:
            raise ValueError(f"{where}: unknown key {path + key!r}{nearest(key, fields)}")
        _refuse_unknown(item, hints[key], f"{path}{key}.", where)


def _resolve(kind: Any, value: Any, where: str) -> Any:
    """The member of a discriminated union that `value` names; other kinds unchanged."""
    members = _members(kind)
    if members and isinstance(value, dict):
        name = value.get("name")
        if name not in members:
            close = nearest(str(name), members)
            raise ValueError(f"{where}: unknown name {name!r}{close} (one of {', '.join(members)})")
        return members[name]
    return typing.get_args(kind)[0] if typing.get_origin(kind) is typing.Annotated else kind


def to_table(config: Any) -> Node:
    """A config as plain settings, ready for TOML; what `validate` reads back to an equal config."""
    return ADAPTER.dump_python(config, mode="json")


def write_toml(table: Node) -> str:
    """TOML of nested tables, lists of tables, and plain values."""
    lines: list[str] = []
    _write_table(table, "", lines)
    return "\n".join(lines).strip() + "\n"


def _write_table(table: Node, path: str, lines: list[str]) -> None:
    nested = {k: v for k, v in table.items() if isinstance(v, dict) or _is_table_list(v)}
    lines += [f"{_key(key)} = {_toml(value)}" for key, value in table.items() if key not in nested]
    for key, value in nested.items():
        inner = path + _key(key)
        for item in value if isinstance(value, list) else [value]:
            lines += ["", f"[[{inner}]]" if isinstance(value, list) else f"[{inner}]"]
            _write_table(item, f"{inner}.", lines)


def _is_table_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml(key)


def _toml(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(key)} = {_toml(item)}" for key, item in value.items()) + "}"
    if value is None:
        raise ValueError("a setting is None, which TOML cannot hold; leave it out")
    # TOML's strings are JSON's, except that DEL must be escaped.
    return repr(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


ADAPTER = TypeAdapter(with_config(ConfigDict(extra="forbid"))(RunConfig))
NAMES = {
    m.name
    for union in (Objective, Term, Advantage, AnyCorrection, PolicyConfig, SamplerConfig)
    for m in typing.get_args(typing.get_args(union)[0])
}
"""Discriminators, which pydantic puts into the path of an error."""


def phase_config(config: RunConfig, phase: Phase) -> RunConfig:
    """The run's settings while a phase lasts. Raises ValueError for settings that are none."""
    table = apply_overrides({**to_table(config), "phase": []}, list(phase.settings.items()))
    return validate(table, f"phase {phase.name!r}")
