"""The report of an import as tables of a terminal."""

from collections import Counter
from collections.abc import Sequence

from rich.table import Table

from gspo.importing.report import Imported, Line

STYLES = {"equal": "green", "equal up to a scale": "cyan", "different": "yellow", "no counterpart": "dim"}


def report_tables(result: Imported) -> list[Table]:
    """What was given; what follows from their defaults; what is still to do."""
    given = [line for line in result.lines if line.is_given]
    implied = [line for line in result.lines if not line.is_given]
    counts = Counter(line.verdict for line in result.lines)
    title = f"{result.origin}: " + ", ".join(f"{counts[verdict]} {verdict}" for verdict in STYLES if counts[verdict])
    tables = [_table("given", given, title)] if given else []
    tables.append(_table("their defaults, and what follows", implied, "" if given else title))
    notes = Table("to know", box=None)
    for note in result.notes:
        notes.add_row(_plain(note))
    return [*tables, notes]


def _table(name: str, lines: Sequence[Line], title: str) -> Table:
    table = Table(title=title, box=None)
    for header in (name, "is", "ours", "why"):
        table.add_column(header, overflow="fold")
    for line in lines:
        why = "; ".join(part for part in (line.why, f"theirs = ours x {line.factor}" if line.factor else "") if part)
        table.add_row(_plain(line.setting), line.verdict, _plain(line.ours), _plain(why), style=STYLES[line.verdict])
    return table


def _plain(text: str) -> str:
    """Brackets are no markup."""
    return text.replace("[", r"\[")
