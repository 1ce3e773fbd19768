"""`gspo papers`: a card for every objective, term, advantage and correction, from the source that computes it.

`gspo papers --write docs/papers` writes the same cards as pages; a test holds the pages against the source.
"""

import dataclasses
import inspect
import json
import re
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gspo.advantages import Advantage
from gspo.cli.settings_help import field_docs
from gspo.corrections import AnyCorrection
from gspo.objectives import Objective, Term
from gspo.settings import nearest

KINDS = {"objective": Objective, "terms": Term, "advantage": Advantage, "corrections": AnyCorrection}
"""Where a recipe names it -> the union of classes."""
URL = re.compile(r"https?://(?:arxiv\.org/abs/|doi\.org/)(\S+?)[,;.]?(?:\s|$)")
REQUIRED = "required"


@dataclass(frozen=True, kw_only=True)
class Card:
    """What is said of one class."""

    name: str
    class_name: str
    kind: str
    module: str
    """Name of the file, which is the name of the page."""
    title: str
    """First line of the file's docstring."""
    text: str
    """The rest of it: reference, equations, departures, certainty, names elsewhere."""
    paper: str
    """Its identifier, or "-" where the file cites several or none."""
    settings: tuple[tuple[str, str, str], ...]
    """(field, default, meaning)."""
    traits: tuple[str, ...]
    """What the class declares of itself, in words."""


def cards() -> list[Card]:
    """One card for every class that a recipe can name, in the order of the unions."""
    return [
        _card(kind, member) for kind, union in KINDS.items() for member in typing.get_args(typing.get_args(union)[0])
    ]


def find_card(name: str) -> Card:
    """A card by the name in recipes or by class name. Raises ValueError with the nearest name."""
    every = {key: card for card in cards() for key in (card.name, card.class_name.lower())}
    key = name.lower().replace("-", "_")
    if key not in every:
        raise ValueError(f"no card {name!r}{nearest(key, every)}; gspo papers lists them")
    return every[key]


def _card(kind: str, member: type) -> Card:
    module = inspect.getmodule(member)
    assert module is not None
    title, _, text = inspect.cleandoc(module.__doc__ or "").partition("\n")
    found = URL.findall(text)
    fields = [f for f in dataclasses.fields(member) if f.name != "name"]
    docs = field_docs(member)
    return Card(
        name=member.name,
        class_name=member.__name__,
        kind=kind,
        module=module.__name__.rpartition(".")[2],
        title=title.rstrip("."),
        text=text.strip(),
        paper=found[0] if found else "-",
        settings=tuple((f.name, _default(f), docs.get(f.name, "")) for f in fields),
        traits=tuple(_traits(_example(member))),
    )


def _default(field: dataclasses.Field) -> str:
    if field.default is not dataclasses.MISSING:
        return json.dumps(field.default)
    return field.default_factory().name if field.default_factory is not dataclasses.MISSING else REQUIRED


def _example(member: type) -> Any:
    """An instance, with 1 for fields that have no default."""
    needed = [f.name for f in dataclasses.fields(member) if _default(f) == REQUIRED]
    return member(**dict.fromkeys(needed, 1))


NEEDS = {
    "reference": "log-probs of the reference",
    "rewards": "rewards",
    "entropy": "the policy's entropy",
    "entropy_gradient": "the policy's entropy, with gradient",
    "sampler": "the sampler's log-probs",
    "old_entropy": "the old policy's entropy",
    "values": "a value estimate of each prompt",
}
SENTENCES = {
    ("keeps_groups_whole", True): "compares the rows of a group: micro-batches hold whole groups",
    ("reads_advantage", False): "reads no advantage",
    ("takes_unit_advantage", False): "takes one advantage per sequence",
    ("is_on_policy", True): "for one update per rollout batch; the trainer refuses more unless told otherwise",
    ("is_derivative", False): "has a stop-gradient: its gradient is not the derivative of its value, by design",
    ("counts_empty_rows", False): "rows without a trained unit do not count in its denominator",
    ("gives_units", True): "gives an advantage per token",
}


def _traits(example: Any) -> list[str]:
    """Words for what is declared and is not the common case."""
    declared = {"needs": example.needs} if not hasattr(example, "traits") else vars(example.traits)
    needs = [NEEDS[need] for need in declared["needs"] if need in NEEDS]
    found = [f"reads {', '.join(needs)}"] if needs else []
    found += [text for (name, value), text in SENTENCES.items() if declared.get(name) == value]
    if declared.get("min_group", 1) > 1:
        found.append(f"needs groups of at least {declared['min_group']}")
    return found


def pages(root: Path) -> dict[str, str]:
    """File name -> text of docs/papers; `root` is the docs folder, whose pictures and records the pages show."""
    by_module: dict[str, list[Card]] = {}
    for card in cards():
        by_module.setdefault(card.module, []).append(card)
    record = root / "records" / "objectives.json"
    measured = json.loads(record.read_text()) if record.is_file() else {}
    made = {f"{module}.md": _page(members, root, measured) for module, members in by_module.items()}
    return {"README.md": _index(by_module), **made}


def _index(by_module: dict[str, list[Card]]) -> str:
    lines = [
        "# Papers",
        "",
        "Written from the source by `gspo papers --write docs/papers`; a test holds them together.",
        "",
    ]
    lines += ["| in a recipe | class | paper | |", "|---|---|---|---|"]
    for members in by_module.values():
        for card in members:
            where = (
                f'`{card.kind} = "{card.name}"`'
                if card.kind in ("objective", "advantage")
                else f"`{card.kind}`: `{card.name}`"
            )
            lines.append(f"| {where} | [{card.class_name}]({card.module}.md) | {card.paper} | {card.title} |")
    return "\n".join(lines) + "\n"


def _page(members: list[Card], root: Path, measured: dict[str, Any]) -> str:
    first = members[0]
    lines = [f"# {first.title}", "", *sections(first.text)]
    for card in members:
        lines += ["", f"## `{card.class_name}`", ""]
        lines.append(
            f"In a recipe: `{card.kind}`, name `{card.name}`. In Python: `gspo.{_place(card)}.{card.class_name}`."
        )
        lines += [*_settings_table(card), *(f"- {trait}" for trait in card.traits)]
        lines += _measured(card, root, measured)
    return "\n".join(lines).rstrip() + "\n"


def _place(card: Card) -> str:
    return {"objective": "objectives", "terms": "objectives", "advantage": "advantages"}.get(card.kind, "corrections")


LABELS = re.compile(r"(?:^|(?<=[.:)\"`]) )(Departures|Certainty|TRL|verl): ")


def sections(text: str) -> list[str]:
    """The docstring's lines, with what it says of departures, certainty and other libraries as points of a list.

    Indented equations and tables stay as they are; Markdown reads the former as code.
    """
    out: list[str] = []
    for paragraph in text.split("\n\n"):
        lines = paragraph.splitlines()
        if any(line.startswith((" ", "|")) for line in lines):
            out += [*lines, ""]
            continue
        parts = LABELS.split(" ".join(lines))
        out += [parts[0], ""] if parts[0] else []
        out += [f"- {label}: {said.strip()}" for label, said in zip(parts[1::2], parts[2::2], strict=True)]
        out += [""] if len(parts) > 1 else []
    return out[:-1]


def _settings_table(card: Card) -> list[str]:
    if not card.settings:
        return ["", "No settings.", ""]
    rows = [f"| `{name}` | {default} | {meaning} |" for name, default, meaning in card.settings]
    return ["", "| setting | default | |", "|---|---|---|", *rows, ""]


def _measured(card: Card, root: Path, measured: dict[str, Any]) -> list[str]:
    """The learning curve and its figures, where the record has them."""
    found = {**measured.get("objectives", {}), **measured.get("estimators", {})}.get(card.name)
    if card.kind not in ("objective", "advantage") or found is None:
        return []
    seeds = ", ".join(f"{100 * value:.1f}" for value in found["held_out"]["seeds"])
    under = "" if card.kind == "objective" else f" under `{found['objective']['name']}`"
    return [
        "",
        "### On the embedded task",
        "",
        f"![Learning curve of {card.name}](../images/papers/{card.name}.png)",
        "",
        f"Two-digit sums, held out, greedy: {100 * measured['start']['mean']:.1f} % before, "
        f"{100 * found['held_out']['mean']:.1f} % after {found['updates']} updates{under} ({seeds} by seed), with the "
        f"learning rate of all, {found['lr']:g}. Made by `{measured['command']}`; the table of all, and what it can "
        "tell, is in [Results](../results.md).",
    ]


def write_pages(folder: Path) -> list[Path]:
    """Write every page into `folder` (docs/papers). Other files there are left alone; a test names stale pages."""
    folder.mkdir(parents=True, exist_ok=True)
    made = pages(folder.parent)
    for name, text in made.items():
        (folder / name).write_text(text)
    return [folder / name for name in made]
