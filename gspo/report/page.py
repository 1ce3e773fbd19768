"""Put the page together: one file, nothing loaded from anywhere."""

import json
import math
from collections.abc import Iterable, Mapping
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from gspo.report.charts import safe_json
from gspo.report.data import Run, column, number, parse_settings, read_run
from gspo.report.numbers import finite, format_duration, format_number, format_percent
from gspo.report.panels import panels, thin
from gspo.report.pictures import Drawing, drawing
from gspo.report.ratios import ratio_section
from gspo.report.samples import sample_data

# Even if a completion found a way around the escaping, the browser would refuse to load or send anything.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
_EXAMPLES = 12


def build_report(run: Path) -> Path:
    """Write `report.html` into the run folder and return its path. One line of ValueError if there is no run."""
    target = Path(run) / "report.html"
    target.write_text(render(read_run(Path(run))), encoding="utf-8", errors="replace")
    return target


def render(run: Run) -> str:
    folder = resources.files("gspo.report")
    title = " · ".join(filter(None, ["gspo", _name(run.declared("task")), _name(run.declared("model"))]))
    body = [_headline(run), _curves(run), ratio_section(run), _samples(run), _examples(run), _settings(run)]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{(folder / 'style.css').read_text('utf-8')}</style></head>"
        f"<body><main>{''.join(body)}</main>"
        f"<script>{(folder / 'script.js').read_text('utf-8')}</script></body></html>"
    )


def _headline(run: Run) -> str:
    before, after, what, form = _scores(run)
    if math.isfinite(before) or math.isfinite(after):
        change = f'{form(before)}<span class="arrow"> → </span><b>{form(after)}</b>'
    else:
        change = "no scores yet"
    state = "" if run.summary.get("after") else '<p class="state">unfinished run: numbers up to the last line</p>'
    facts = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in _facts(run))
    return (
        f'<header><p class="eyebrow">gspo report</p><h1>{change}</h1><p class="what">{escape(what)}</p>{state}'
        f'<dl class="facts">{facts}</dl></header>'
    )


def _scores(run: Run) -> tuple[float, float, str, Any]:
    """Before, after, what they are and how to write them: held-out scores if there are any, else rewards."""
    when = "before → after training" if run.summary.get("after") else "first → last evaluation"
    for name, what, form in (
        ("accuracy", f"held-out accuracy, {when}", format_percent),
        ("reward", f"held-out reward, {when}", format_number),
    ):
        logged = finite(column(run.lines, f"eval/{name}"))
        before = number((run.summary.get("before") or {}).get(name))
        after = number((run.summary.get("after") or {}).get(name))
        before = before if math.isfinite(before) or not logged else logged[0]
        after = after if math.isfinite(after) or not logged else logged[-1]
        if math.isfinite(before) or math.isfinite(after):
            return before, after, what, form
    rewards = finite(column(run.training, "reward"))
    first, last = (rewards[0], rewards[-1]) if rewards else (math.nan, math.nan)
    return first, last, "training reward, first → last step", format_number


def _facts(run: Run) -> list[tuple[str, str]]:
    summary = run.summary
    before, after = summary.get("before") or {}, summary.get("after") or {}
    greedy = [number(side.get("greedy_accuracy")) for side in (before, after)]
    logged_time = sum(finite(column(run.training, "step_time"))) or math.nan
    seconds = number(summary.get("seconds"))
    facts = [
        ("task", _name(run.declared("task"))),
        ("model", _name(run.declared("model"))),
        ("objective", _objective(run.declared("objective"))),
        ("greedy accuracy", " → ".join(map(format_percent, greedy)) if finite(greedy) else ""),
        ("steps", f"{len(run.training):,}" if run.training else ""),
        ("time", format_duration(seconds if math.isfinite(seconds) else logged_time)),
        ("tokens", format_number(max(finite(column(run.lines, "num_tokens")), default=math.nan))),
        ("device", _name(summary.get("device"))),
    ]
    return [(name, text) for name, text in facts if text not in ("", "–")]


def _objective(objective: Any) -> str:
    """ "gspo, clip_low 0.0003, clip_high 0.0004": the name, then its constants as they are set."""
    if not isinstance(objective, dict):
        return _name(objective)
    constants = [f"{k} {_constant(v)}" for k, v in objective.items() if k != "name" and v is not None]
    return ", ".join([_name(objective.get("name")), *constants]).strip(", ")


def _constant(value: Any) -> str:
    if isinstance(value, dict):  # a wrapper's base
        return f"({_objective(value)})"
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return format_number(float(value)) if is_number else str(value)


def _name(value: Any) -> str:
    """A table (a model described by several settings) goes by its own name."""
    value = value.get("name") if isinstance(value, dict) else value
    return "" if value is None else str(value)


def _curves(run: Run) -> str:
    figures = panels(run)
    if not figures:
        return ""
    stride = thin(run.training).stride
    thinned = f" Each point is the mean of {stride} steps." if stride > 1 else ""
    note = f"One step is one batch of rollouts and the updates made on it.{thinned} Point at a curve for its values."
    return f'<section><h2>Training</h2><p class="lead">{note}</p><div class="grid">{"".join(figures)}</div></section>'


def _samples(run: Run) -> str:
    data = sample_data(run)
    if not data["steps"]:
        return ""
    return (
        '<section id="reader"><h2>Completions</h2><p class="lead">A token is coloured by its log-ratio, '
        "log π − log π<sub>old</sub>: how far earlier updates of the step had moved it when it was trained on. "
        "Point at a token for its numbers. Grey: said by an environment, not trained. "
        "Groups whose rewards differ come first; the others train nothing.</p>"
        '<div class="controls"><div class="steps" role="group" aria-label="step"></div>'
        '<div class="scale"></div></div>'
        '<div class="groups"></div><noscript><p>Completions are shown by a script in this file.</p></noscript>'
        f'<script type="application/json" id="rollouts">{safe_json(data)}</script></section>'
    )


def _examples(run: Run) -> str:
    examples = run.summary.get("examples") or {}
    sides = [list(examples.get(side) or []) for side in ("before", "after")]
    after_of = {example.get("prompt"): example for example in sides[1]}
    prompts = list(dict.fromkeys(example.get("prompt") for side in sides for example in side))[:_EXAMPLES]
    before_of = {example.get("prompt"): example for example in sides[0]}
    draw = drawing(run)
    rows = "".join(_example(prompt, before_of.get(prompt), after_of.get(prompt), draw) for prompt in prompts)
    if not rows:
        return ""
    return (
        '<section><h2>Before and after</h2><p class="lead">The same held-out prompts, answered by the model '
        'before and after training.</p><table class="examples"><thead><tr><th>prompt</th><th>before</th>'
        f"<th>after</th></tr></thead><tbody>{rows}</tbody></table></section>"
    )


def _example(prompt: Any, before: Mapping[str, Any] | None, after: Mapping[str, Any] | None, draw: Drawing) -> str:
    answer = (before or after or {}).get("answer")
    expected = "" if answer is None else f'<small>answer <span class="text">{escape(str(answer))}</span></small>'
    question = f'<td>{draw(str(prompt), None, "")}<span class="text">{_cut(prompt)}</span>{expected}</td>'
    return f"<tr>{question}{_completion(before, 'before', draw)}{_completion(after, 'after', draw)}</tr>"


def _completion(example: Mapping[str, Any] | None, side: str, draw: Drawing) -> str:
    if example is None:
        return f'<td data-side="{side}">–</td>'
    reward = number(example.get("reward"))
    shown = f"<small>reward <b>{format_number(reward)}</b></small>"
    prompt, said, answer = (str(example.get(name) or "") for name in ("prompt", "completion", "answer"))
    return f'<td data-side="{side}">{draw(prompt, said, answer)}<span class="text">{_cut(said)}</span>{shown}</td>'


def _cut(text: Any, limit: int = 900) -> str:
    text = str("" if text is None else text)
    return escape(text if len(text) <= limit else f"{text[: limit // 2]} … {text[-limit // 2 :]}")


def _settings(run: Run) -> str:
    parts = []
    if run.settings:
        parts.append(f"<h2>Settings</h2>{_settings_table(run.settings)}")
    versions = run.summary.get("versions") or {}
    if versions:
        pairs = ", ".join(f"{name} {version}" for name, version in versions.items())
        parts.append(f'<h2>Versions</h2><p class="versions">{escape(pairs)}</p>')
    if run.unreadable:
        parts.append(f'<p class="note">Could not be read and is left out: {escape(", ".join(run.unreadable))}.</p>')
    folder = escape(run.path.resolve().name)
    return f'<section>{"".join(parts)}<p class="note">Made from <span class="text">{folder}</span>.</p></section>'


def _settings_table(text: str) -> str:
    tables = parse_settings(text)
    if tables is None:
        return f'<pre class="text">{escape(text)}</pre>'
    groups: dict[str, list[str]] = {}
    for key, value in _flatten(tables):
        table, _, name = key.rpartition(".")
        shown = value if isinstance(value, str) else json.dumps(value, default=str)
        groups.setdefault(table, []).append(f"<div><dt>{escape(name)}</dt><dd>{escape(shown)}</dd></div>")
    blocks = (
        f'<div class="block"><h3>{escape(name)}</h3><dl>{"".join(rows)}</dl></div>' for name, rows in groups.items()
    )
    return f'<div class="settings">{"".join(blocks)}</div>'


def _flatten(table: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """`a.b` names and their values; plain values of a table come before its sub-tables, as in the file."""
    for key, value in sorted(table.items(), key=lambda item: isinstance(item[1], dict)):
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
