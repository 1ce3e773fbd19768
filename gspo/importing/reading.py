"""Their settings as plain values: YAML or JSON files, `--flag value` words, Hydra words, and shell scripts of those.

Nothing of theirs is imported or run. Shell variables that a script sets itself are filled in; others stay as text.
"""

import ast
import json
import operator
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gspo.settings import Node, nearest

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
HYDRA_KEY = re.compile(r"\+{0,2}[A-Za-z_]\w*(\.[\w-]+)+")
SHELL_NAME = re.compile(r"[A-Za-z_]\w*")
WORDS = {"null": None, "None": None, "~": None, "": None}
TRUTH = {"true": True, "false": False}


def value_of(text: str) -> Any:
    """A number, truth value, null, list or table from its text, as YAML 1.2 has it; else the text ("none" is one).

    YAML 1.1, which PyYAML reads, takes 3e-4 for text: a number needs a dot there.
    """
    text = text.strip()
    if text in WORDS:
        return WORDS[text]
    if text.lower() in TRUTH:
        return TRUTH[text.lower()]
    if NUMBER.fullmatch(text):
        return int(text) if text.lstrip("+-").isdigit() else float(text)
    if text[0] in "[{":
        return _bracketed(text)
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        return text[1:-1]
    return text


def _bracketed(text: str) -> Any:
    """JSON, or Hydra's [a,b] without quotes."""
    try:
        return numbers(json.loads(text))
    except json.JSONDecodeError:
        pass
    if text[0] == "[" and text[-1] == "]" and "[" not in text[1:]:
        return [value_of(part) for part in text[1:-1].split(",") if part.strip()]
    return text


def numbers(value: Any) -> Any:
    """A parsed document with the numbers that YAML 1.1 left as text."""
    if isinstance(value, dict):
        return {str(name): numbers(item) for name, item in value.items()}
    if isinstance(value, list):
        return [numbers(item) for item in value]
    return value_of(value) if isinstance(value, str) and NUMBER.fullmatch(value) else value


# ---- TRL: a file, then flags -----------------------------------------------------------------------------------


def flags_and_file(words: Sequence[str], lists: Iterable[str] = ()) -> Node:
    """["config.yaml", "--beta", "0"] -> settings; flags win. `--config FILE` names the file too, as in TRL's CLI."""
    found: Node = {}
    rest = list(words)
    while rest and not rest[0].startswith("--"):
        found |= read_document(Path(rest.pop(0)))
    flags = dict(_flags(rest))
    if "config" in flags:
        found |= read_document(Path(" ".join(flags.pop("config"))))
    return found | {name: _flag_value(texts, name in lists) for name, texts in flags.items()}


def _flag_value(texts: Sequence[str], is_list: bool) -> Any:
    """No word is true, several are a list, and so is one where the argument takes several."""
    values = [value_of(text) for text in texts]
    if not values:
        return True
    is_single = len(values) == 1 and (not is_list or values[0] is None or isinstance(values[0], list))
    return values[0] if is_single else values


def _flags(words: Sequence[str]) -> Iterable[tuple[str, list[str]]]:
    rest = list(words)
    while rest:
        name, equals, text = rest.pop(0)[2:].partition("=")
        texts = [text] if equals else []
        while rest and not rest[0].startswith("--"):
            texts.append(rest.pop(0))
        yield name.replace("-", "_"), texts


def read_document(path: Path) -> Node:
    """A YAML or JSON file that holds one table."""
    if path.suffix not in (".yaml", ".yml", ".json"):
        raise ValueError(
            f"{str(path)!r} is no .yaml, .yml or .json file; Python configs are not run: give --flag value"
        )
    if not path.is_file():
        raise ValueError(f"file {str(path)!r} does not exist")
    table = _json(path) if path.suffix == ".json" else _yaml(path)
    if not isinstance(table, dict):
        raise ValueError(f"{path} holds no table of settings")
    return numbers(table)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None


def _yaml(path: Path) -> Any:
    import yaml

    try:
        return yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from None


# ---- verl: Hydra words, or a script of them ----------------------------------------------------------------------


def hydra(words: Sequence[str]) -> Node:
    """["a.b=1", "+c.d=x", "run.sh"] -> {"a.b": 1, "c.d": "x", ...}; a later word wins."""
    found: Node = {}
    for word in words:
        name, equals, text = word.partition("=")
        if equals and HYDRA_KEY.fullmatch(name):
            found[name.lstrip("+")] = value_of(text)
        elif not equals and Path(word).is_file():
            found |= hydra(_file_overrides(Path(word)))
        elif equals:
            raise ValueError(f"unknown key {name!r}: verl's keys have dots, such as data.train_batch_size=512")
        else:
            raise ValueError(f"{word!r} is neither an override such as a.b=value nor a file of them")
    return found


def _file_overrides(path: Path) -> list[str]:
    try:
        found = script_overrides(path.read_text())
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not a text file") from None
    if not found:
        raise ValueError(f"{path} has no override such as a.b=value")
    return found


def script_overrides(text: str) -> list[str]:
    """The words a.b=value of a shell script or text file, with the variables that it sets itself filled in."""
    text = text.replace("\\\n", " ").replace("=(", "=( ")
    text = re.sub(r"\$\(\((.*?)\)\)", lambda match: re.sub(r"\s+", "", match.group()), text)
    try:
        words = shlex.split(text, comments=True)
    except ValueError as error:
        raise ValueError(f"cannot read the script: {error}") from None
    known: dict[str, str] = {}
    found = []
    for word in words:
        name, equals, value = word.partition("=")
        if equals and HYDRA_KEY.fullmatch(name):
            found.append(f"{name}={_filled(value, known)}")
        elif equals and SHELL_NAME.fullmatch(name):
            known[name] = _filled(value.rstrip(";"), known)
    return found


def _filled(text: str, known: Mapping[str, str]) -> str:
    """Text with $NAME, ${NAME}, ${NAME:-default} and $((a * b)) replaced where they are known."""
    text = re.sub(r"\$\(\((.*?)\)\)", lambda match: _arithmetic(match, known), text)

    def value(match: re.Match[str]) -> str:
        name, default = match.group(1) or match.group(3), match.group(2)
        if name in known:
            return known[name]
        return match.group() if default is None else _filled(default, known)

    return re.sub(r"\$\{(\w+)(?::?-([^}]*))?\}|\$([A-Za-z_]\w*)", value, text)


OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.floordiv,
    ast.Mod: operator.mod,
}


def _arithmetic(match: re.Match[str], known: Mapping[str, str]) -> str:
    """$((...)) of whole numbers; unchanged where it reads something else."""
    names = lambda name: known.get(name.group(), name.group())  # noqa: E731
    try:
        return str(
            _number(ast.parse(re.sub(r"[A-Za-z_]\w*", names, match.group(1).replace("$", "")), mode="eval").body)
        )
    except (SyntaxError, ValueError, ZeroDivisionError):
        return match.group()


def _number(node: ast.expr) -> int:
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return node.value
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        return OPERATORS[type(node.op)](_number(node.left), _number(node.right))
    raise ValueError("not arithmetic of whole numbers")


def refuse_unknown(given: Iterable[str], known: Iterable[str], library: str) -> None:
    """The first key that the library does not have is an error with the nearest name."""
    for key in given:
        if key not in known:
            raise ValueError(f"unknown key {key!r}: {library} has no such setting{nearest(key, known)}")
