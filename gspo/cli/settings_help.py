"""`--help` from the settings' own docstrings: every field, its default, and the line written under it."""

import ast
import dataclasses
import inspect
import itertools
import textwrap
import types
import typing
from typing import Any

from gspo.config import RunConfig


def field_docs(kind: type) -> dict[str, str]:
    """Field name -> the string written under it in the class."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    body = tree.body[0].body  # type: ignore[attr-defined]
    docs = {}
    for statement, following in itertools.pairwise(body):
        is_text = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
        if isinstance(statement, ast.AnnAssign) and is_text and isinstance(statement.target, ast.Name):
            docs[statement.target.id] = " ".join(str(following.value.value).split())
    return docs


def settings_help() -> str:
    """All settings, as they are written on the command line."""
    lines = ["Settings, with defaults of the library (recipes set their own):", ""]
    _describe(RunConfig, "", lines)
    return "\n".join(lines)


def _describe(kind: type, prefix: str, lines: list[str]) -> None:
    docs = field_docs(kind)
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        if field.name == "name" and typing.get_origin(hints["name"]) is typing.Literal:
            continue
        members = _members(hints[field.name])
        default = "" if members else f" (default {_default(field)})"
        is_nested = len(members) > 1 and bool(prefix)
        if is_nested:  # a wrapper's base: its members are described where they stand by themselves
            default = (
                f" (one of {', '.join(member.name for member in members)}; default {field.default_factory().name})"
            )
        lines += textwrap.wrap(
            f"--{prefix}{field.name}  {docs.get(field.name, '')}{default}",
            width=110,
            subsequent_indent="      ",
            break_on_hyphens=False,
        )
        for member in () if is_nested else members:
            is_union = len(members) > 1 or "name" in {f.name for f in dataclasses.fields(member)}
            if is_union and hasattr(member, "name"):
                lines.append(f"    {prefix}{field.name}.name = {member.name!r}: {_first_line(member)}")
            _describe(member, f"{prefix}{field.name}.", lines)


def _members(hint: Any) -> list[type]:
    """The dataclasses inside a hint: itself, a union's members, or a tuple's."""
    if dataclasses.is_dataclass(hint):
        return [hint]
    if typing.get_origin(hint) is typing.Annotated:
        return _members(typing.get_args(hint)[0])
    if typing.get_origin(hint) in (typing.Union, types.UnionType, tuple):
        return [member for part in typing.get_args(hint) if part is not Ellipsis for member in _members(part)]
    return []


def _first_line(kind: type) -> str:
    own = inspect.getdoc(kind) or ""
    text = own if own and not own.startswith(kind.__name__ + "(") else inspect.getmodule(kind).__doc__ or ""
    return text.strip().splitlines()[0] if text.strip() else ""


def _default(field: dataclasses.Field) -> str:
    if field.default is not dataclasses.MISSING:
        return repr(field.default)
    return repr(field.default_factory()) if field.default_factory is not dataclasses.MISSING else "none: required"
