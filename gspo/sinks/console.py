"""The terminal: a live view where there is one, a line now and then where there is not."""

import math
import time
from collections.abc import Callable, Sequence

from rich.columns import Columns
from rich.console import Console as Terminal
from rich.console import Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from gspo.sinks.base import Record
from gspo.sinks.curve import Curve

# Name in the metrics, label on the screen, format. Order is the order on the screen.
_Shown = tuple[tuple[str, str, Callable[[float], str]], ...]
_SCORES: _Shown = (("reward", "reward", "{:.3f}".format), ("eval/accuracy", "held-out", "{:.3f}".format))
_FACTS: _Shown = (
    ("preference/accuracy", "preferred", lambda value: f"{100 * value:.0f} %"),
    ("environment/failed", "failed environments", lambda value: f"{value:.0f}" if value else ""),
    ("clip_ratio/region_mean", "clipped", lambda value: f"{100 * value:.1f} %"),
    ("entropy", "entropy", lambda value: f"{value:.3f}"),
    ("completions/mean_length", "length", lambda value: f"{value:.1f}"),
    ("grad_norm", "grad norm", lambda value: f"{value:.3g}"),
    ("lr", "lr", lambda value: f"{value:.2g}"),
    ("tokens_per_second", "tokens/s", lambda value: f"{value:,.0f}"),
)


def printable(text: str) -> str:
    """One line without control characters: a completion must not be able to steer the terminal."""
    return "".join(c if c.isprintable() else "⏎" if c == "\n" else "·" for c in text)


def format_duration(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{minutes:.0f} min" if minutes < 60 else f"{int(hours)} h {int(minutes) % 60:02d} min"


def _worded(metrics: dict[str, float], shown: _Shown) -> list[tuple[str, str]]:
    """(label, value) of what there is to say; a form may have nothing to say of a value."""
    known = [(label, form(metrics[name])) for name, label, form in shown if _known(metrics, name)]
    return [(label, value) for label, value in known if value]


def _known(metrics: dict[str, float], name: str) -> bool:
    return math.isfinite(metrics.get(name, math.nan))


class Console:
    """Shows a run: `phase`/`advance` for what comes before the steps, `write` for the steps.

    `plain=None` asks the terminal: live where it can redraw, plain lines otherwise. Plain mode prints about
    twenty steps of a run and every evaluation.
    """

    def __init__(
        self,
        total_steps: int,
        *,
        title: str = "gspo",
        plain: bool | None = None,
        terminal: Terminal | None = None,
    ):
        self._terminal = terminal or Terminal()
        self._plain = not _is_live(self._terminal) if plain is None else plain
        self._total_steps = total_steps
        self._title = title
        self._phases: list[_Phase] = []
        self._steps: _Phase | None = None
        self._rewards: list[float] = []
        self._scores: list[float] = []
        self._last: dict[str, float] = {}
        self._sample = ""
        self._live: Live | None = None

    def phase(self, name: str, total: int) -> None:
        """Start something counted that is not a training step, such as the cold start."""
        self._phases.append(_Phase(name, total))
        if self._plain:
            self._print(f"{name}: {total} steps")
        self._show()

    def advance(self, n: int = 1, **facts: float) -> None:
        """Count `n` more of the current phase; `facts` are numbers to show beside its bar."""
        if not self._phases:
            self.phase("preparing", n)
        phase = self._phases[-1]
        tenth = lambda done: 10 * done // max(phase.total, 1)  # noqa: E731
        crossed = tenth(phase.done) != tenth(phase.done + n)
        phase.done, phase.facts = phase.done + n, facts
        if self._plain and crossed:
            shown = "".join(f"  {name} {value:.4g}" for name, value in facts.items())
            self._print(f"{phase.name} {phase.done}/{phase.total}{shown}  left {phase.left()}")
        self._show()

    def write(self, record: Record) -> None:
        if self._steps is None:
            self._steps = _Phase("training", self._total_steps, done=record.step)
        before, self._steps.done = min(self._steps.done, record.step - 1), record.step
        self._last.update(record.metrics)
        self._sample = record.sample or self._sample
        if _known(record.metrics, "reward"):
            self._rewards.append(record.metrics["reward"])
        if _known(record.metrics, "eval/accuracy"):
            self._scores.append(record.metrics["eval/accuracy"])
        if self._plain and self._is_worth_a_line(before, record):
            self._print(self._line(record))
        self._show()

    def message(self, text: str) -> None:
        """Text that stays, above the live view."""
        for line in text.splitlines():  # nothing of an empty text
            self._print(line)

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _is_worth_a_line(self, before: int, record: Record) -> bool:
        twentieth = lambda step: 20 * step // max(self._total_steps, 1)  # noqa: E731
        first_or_last = record.step in (1, self._total_steps)
        evaluated = any(name.startswith("eval/") for name in record.metrics)
        return evaluated or first_or_last or twentieth(before) != twentieth(record.step)

    def _line(self, record: Record) -> str:
        metrics = record.metrics
        facts = [f"{label} {value}" for label, value in _worded(metrics, _SCORES + _FACTS)]
        left = [f"left {self._steps.left()}"] if self._steps and 0 < record.step < self._total_steps else []
        width = len(str(self._total_steps))
        return "  ".join([f"step {record.step:>{width}}/{self._total_steps}", *facts, *left])

    def _print(self, text: str) -> None:
        encoding = self._terminal.encoding
        text = printable(text).encode(encoding, "replace").decode(encoding)
        self._terminal.print(text, markup=False, highlight=False, soft_wrap=True)

    def _show(self) -> None:
        if self._plain:
            return
        if self._live is None:
            self._live = Live(get_renderable=self._render, console=self._terminal, refresh_per_second=4)
            self._live.start()

    def _render(self) -> RenderableType:
        parts: list[RenderableType] = [_bars([*self._phases, *([self._steps] if self._steps else [])])]
        # Evaluations are few: each is drawn four columns wide.
        curves = [("reward", self._rewards, "cyan", 1), ("held-out", self._scores, "green", 4)]
        shown = [Curve(name, tuple(values), style, wide) for name, values, style, wide in curves if values]
        if shown:
            parts += [Text(), _side_by_side(shown, self._terminal.width)]
        facts = _worded(self._last, _FACTS)
        if facts:
            parts += [Text(), _fact_line(facts)]
        if self._sample:
            text = Text(printable(self._sample), style="dim", no_wrap=True, overflow="ellipsis")
            parts += [Text(), text]
        title = Text(printable(self._title))
        return Panel(Group(*parts), title=title, title_align="left", border_style="dim")


def _is_live(terminal: Terminal) -> bool:
    """Whether the view can be redrawn; bars and curves need characters that only UTF-8 terminals print."""
    return terminal.is_terminal and not terminal.is_dumb_terminal and terminal.encoding.startswith("utf")


class _Phase:
    """A count with a clock. The clock starts where the count starts, so a resumed run's estimate is right."""

    def __init__(self, name: str, total: int, done: int = 0):
        self.name, self.total, self.done = name, total, done
        self.facts: dict[str, float] = {}
        self._start, self._start_time = done, time.monotonic()

    def left(self) -> str:
        counted = self.done - self._start
        if self.done >= self.total or counted <= 0:
            return "0 s" if self.done >= self.total else "?"
        return format_duration((self.total - self.done) * (time.monotonic() - self._start_time) / counted)


def _bars(phases: Sequence[_Phase]) -> Table:
    table = Table.grid(padding=(0, 1), expand=True)
    table.add_column(no_wrap=True, overflow="ellipsis")
    table.add_column(ratio=1, min_width=6)
    table.add_column(no_wrap=True, justify="right", overflow="ellipsis")
    for phase in phases:
        facts = "".join(f"{name} {value:.4g}  " for name, value in phase.facts.items())
        ending = "done" if phase.done >= phase.total else f"left {phase.left()}"
        bar = ProgressBar(total=max(phase.total, 1), completed=phase.done, complete_style="cyan")
        table.add_row(phase.name, bar, Text(f"{facts}{phase.done}/{phase.total}  {ending}", style="dim"))
    return table


def _side_by_side(curves: Sequence[Curve], width: int) -> RenderableType:
    if width < 60 or len(curves) == 1:
        return Group(*curves)
    table = Table.grid(padding=(0, 2), expand=True)
    for _ in curves:
        table.add_column(ratio=1)
    table.add_row(*curves)
    return table


def _fact_line(facts: Sequence[tuple[str, str]]) -> Columns:
    cells = [Text.assemble((f"{label} ", "dim"), (value, "bold"), no_wrap=True) for label, value in facts]
    return Columns(cells, padding=(0, 3))


_ROWS = (
    ("accuracy", "accuracy", "{:.1%}"),
    ("greedy_accuracy", "greedy accuracy", "{:.1%}"),
    ("reward", "reward", "{:.3f}"),
    ("mean_length", "mean length (tokens)", "{:.1f}"),
)


def before_after_table(before: dict[str, float], after: dict[str, float]) -> Table:
    """Held-out scores before and after training; a score missing on both sides has no row."""
    table = Table("held out", title_justify="left", box=None, header_style="dim")
    for column in ("before", "after", "change"):
        table.add_column(column, justify="right", style="bold" if column == "after" else "")
    for name, label, form in _ROWS:
        old, new = (_number(side.get(name)) for side in (before, after))
        if math.isfinite(old) or math.isfinite(new):
            change = _change(new - old, is_share=form.endswith("%}"))
            table.add_row(label, *(form.format(x) if math.isfinite(x) else "–" for x in (old, new)), change)
    return table


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _change(difference: float, *, is_share: bool) -> str:
    if not math.isfinite(difference):
        return "–"
    return f"{100 * difference:+.1f} points" if is_share else f"{difference:+.3g}"
