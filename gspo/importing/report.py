"""What an import says: one line per setting of theirs, and the recipe that those lines make together. Pure.

A handler reads one setting of theirs among all of them and gives `Said`: what ours it becomes and how close that is.
`imported` runs the handlers and merges what they set; the recipe it makes has been validated.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from gspo.config import RunConfig
from gspo.settings import Node, nearest, validate, write_toml

Verdict = Literal["equal", "equal up to a scale", "different", "no counterpart"]


@dataclass(frozen=True, kw_only=True)
class Said:
    """What a handler says of one setting."""

    verdict: Verdict
    why: str = ""
    """The reason, in a sentence; needed for everything that is not plainly equal."""
    factor: str = ""
    """theirs = ours x factor: a number, or a formula in the counts of an update."""
    sets: Mapping[str, Any] = field(default_factory=dict)
    """Our settings by dotted name."""
    adds: Mapping[str, Node] = field(default_factory=dict)
    """Tables appended to a list of ours: {"terms": {"name": "reference_kl"}}."""
    ours: str = ""
    """Where a setting of ours is meant that another line sets; else made from `sets` and `adds`."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of the report."""

    key: str
    theirs: str
    verdict: Verdict
    ours: str
    why: str
    factor: str
    is_given: bool
    """False where it follows from a default of theirs."""

    @property
    def setting(self) -> str:
        return f"{self.key} = {self.theirs}" if self.theirs else self.key


@dataclass(frozen=True, kw_only=True)
class Imported:
    """A recipe of ours and the report on how it was made."""

    origin: str
    """Whose settings, with the version."""
    lines: tuple[Line, ...]
    notes: tuple[str, ...]
    """What the recipe still needs, and what was assumed."""
    table: Node
    """The recipe as plain settings."""

    @property
    def config(self) -> RunConfig:
        return validate(self.table, f"the recipe imported from {self.origin}")

    def verdicts(self) -> dict[str, Verdict]:
        return {line.key: line.verdict for line in self.lines}

    def toml(self) -> str:
        """The recipe as a file, headed by what it does not reproduce."""
        missed = [line for line in self.lines if line.verdict in ("different", "equal up to a scale")]
        head = [f"# Imported from {self.origin} by gspo import."]
        head += [f"# {line.verdict}: {line.setting}" for line in missed]
        return "\n".join([*head, "", write_toml(self.table)])

    def as_json(self) -> dict[str, Any]:
        lines = [dataclasses.asdict(line) for line in self.lines]
        return {
            "library": self.origin,
            "lines": lines,
            "notes": self.notes,
            "recipe": self.table,
            "toml": self.toml(),
        }


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the user gave, over their library's defaults."""

    given: Mapping[str, Any]
    defaults: Mapping[str, Any]

    def __getitem__(self, key: str) -> Any:
        return self.given[key] if key in self.given else self.defaults[key]

    def number(self, key: str) -> float:
        value = self[key]
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{key} is {value!r}; it must be a number")
        return value

    def count(self, key: str) -> int:
        """A whole number of at least 1."""
        value = self.number(key)
        if value != int(value) or value < 1:
            raise ValueError(f"{key} is {value!r}; it must be a whole number of at least 1")
        return int(value)

    def is_on(self, key: str) -> bool:
        value = self[key]
        if not isinstance(value, bool) and value is not None:
            raise ValueError(f"{key} is {value!r}; it must be true or false")
        return bool(value)

    def choice(self, key: str, options: Iterable[str]) -> str:
        value = self[key]
        if value not in options:
            close = nearest(str(value), options)
            raise ValueError(f"{key} is {value!r}{close} (one of {', '.join(options)})")
        return value


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One rollout batch in our words, and how well it says what theirs is."""

    prompts: int
    group_size: int
    updates: int
    epochs: int
    parts: int = 1
    """Micro-batches of an update that are averaged apart, over all processes; 1 where the split does not matter."""
    generations: int = 1
    """Rollout batches of theirs that one update spans."""
    made: float
    """Updates that theirs makes of one rollout batch, over all epochs."""
    verdict: Verdict = "equal"
    why: str = ""

    @property
    def rows(self) -> int:
        """Completions of an update."""
        return self.prompts * self.group_size // self.updates


def whole_groups(prompts: int, updates: int) -> int:
    """The most mini-batches of whole groups that is not above `updates`."""
    return max(n for n in range(1, updates + 1) if prompts % n == 0)


# ---- handlers for the simple cases ---------------------------------------------------------------------------

Handler = Callable[[Any, str], Said]
"""(all that is known of their run, the key) -> what it becomes."""


def same(*names: str, why: str = "") -> Handler:
    """The same value under another name; nothing where it is null."""

    def handler(lib: Any, key: str) -> Said:
        value = lib.settings[key]
        if value is None:
            return Said(verdict="equal", why="not set")
        return Said(verdict="equal", why=why, sets=dict.fromkeys(names, value))

    return handler


def nothing(why: str) -> Handler:
    """Known, and not here."""
    return lambda lib, key: Said(verdict="no counterpart", why=why)


def unless(idle: Any, why: str) -> Handler:
    """Nothing to do at the value `idle`; any other value changes their run and has no counterpart here."""

    def handler(lib: Any, key: str) -> Said:
        if lib.settings[key] == idle:
            return Said(verdict="equal", why="off, as here")
        return Said(verdict="no counterpart", why=why)

    return handler


def every_steps(value: Any, made: float, name: str) -> Said:
    """An interval in updates of theirs as one in steps of ours."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 1:
        return Said(verdict="different", why="an interval in steps is needed here")
    steps = max(1, round(value / made))
    is_exact = steps * made == value
    why = f"{value:g} updates / {made:g} per rollout batch" if made != 1 else ""
    return Said(verdict="equal" if is_exact else "different", why=why, sets={name: steps})


# ---- from lines to a recipe ------------------------------------------------------------------------------------


def imported(library: str, lib: Any, said: Sequence[tuple[str, Said]], notes: Sequence[str] = ()) -> Imported:
    """The report and the recipe of what the handlers said, in that order."""
    table: Node = {}
    for key, line in said:
        for name, value in line.sets.items():
            _put(table, name, value, key)
        for name, item in line.adds.items():
            table.setdefault(name, []).append(dict(item))
    table = _in_order({"name": f"from-{library.split()[0].lower()}", **table})
    validate(table, f"the recipe imported from {library}")
    lines = tuple(_line(lib.settings, key, line) for key, line in said)
    return Imported(origin=library, lines=lines, notes=tuple(notes), table=table)


def _put(table: Node, name: str, value: Any, key: str) -> None:
    *parents, last = name.split(".")
    for parent in parents:
        table = table.setdefault(parent, {})
    assert table.get(last, value) == value, f"{key} sets {name} to {value!r}, and another line to {table[last]!r}"
    table[last] = value


def _in_order(table: Node) -> Node:
    """Settings in the order of their classes, the name of a part first."""
    order = [f.name for f in dataclasses.fields(RunConfig)]
    rank = lambda name: (order.index(name) if name in order else -1, "")  # noqa: E731
    return {name: _named_first(table[name]) for name in sorted(table, key=rank)}


def _named_first(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {name: _named_first(value[name]) for name in sorted(value, key=lambda name: name != "name")}


def _line(settings: Settings, key: str, said: Said) -> Line:
    is_given = key in settings.given
    theirs = text_of(settings[key]) if is_given or key in settings.defaults else ""
    ours = said.ours or ", ".join([*_setting_texts(said.sets), *_table_texts(said.adds)])
    return Line(
        key=key, theirs=theirs, verdict=said.verdict, ours=ours, why=said.why, factor=said.factor, is_given=is_given
    )


def _setting_texts(sets: Mapping[str, Any]) -> list[str]:
    return [f"{name} = {_toml(value)}" for name, value in sets.items()]


def _table_texts(adds: Mapping[str, Node]) -> list[str]:
    return [f"{name}: " + ", ".join([*_setting_texts(item)]) for name, item in adds.items()]


def _toml(value: Any) -> str:
    return write_toml({"x": value}).removeprefix("x = ").strip()


def plural(number: int, word: str) -> str:
    return f"{number} {word}" + ("" if number == 1 else "s")


def text_of(value: Any) -> str:
    """A value of theirs as they would write it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return value if isinstance(value, str) else repr(value)
