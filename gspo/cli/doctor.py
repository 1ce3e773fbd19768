"""`gspo doctor RUN | RECIPE.toml`: why the sampler's log-probs are not the policy's, cause by cause."""

import math
from pathlib import Path

from rich.console import Console
from rich.table import Table

from gspo.config import RunConfig
from gspo.doctor import Doctor, advice
from gspo.report.data import read_run
from gspo.samplers.base import Closes
from gspo.training.folder import RunFolder
from gspo.training.parts import build
from gspo.training.state import TrainState, load_newest

SHOWN = {"cause": "[bold red]cause[/]", "fine": "fine", "unknown": "[yellow]not known[/]"}


def examine(config: RunConfig, run: Path | None, terminal: Console, prompts: int) -> int:
    """Prints a table of causes; how many were named."""
    parts = build(config, report=lambda text: terminal.print(text, soft_wrap=True))
    try:
        state = TrainState()
        if run is not None:
            state, tensors = load_newest(RunFolder(run).checkpoints, terminal.print)
            parts.policy.weights.load(tensors)
            terminal.print(f"weights of step {state.step}; {_said_by(run)}", soft_wrap=True)
        now, findings = Doctor(parts, prompts, version=state.version).examine()
        terminal.print(f"gap between sampler and policy: {now.mean:.2g} nats a token", soft_wrap=True)
        table = Table("possible cause", "", "measured", "that is", box=None)
        for finding in findings:
            table.add_row(finding.cause, SHOWN[finding.verdict], finding.measured, finding.sentence)
        terminal.print(table)
        terminal.print(advice(parts, now), soft_wrap=True, highlight=False)
    finally:
        parts.rewards.close()
        if isinstance(parts.sampler, Closes):
            parts.sampler.close()
    return sum(finding.verdict == "cause" for finding in findings)


def _said_by(run: Path) -> str:
    """What the run itself logged of the gap."""
    gaps = [line["mismatch/mean"] for line in read_run(run).lines if "mismatch/mean" in line]
    gaps = [gap for gap in gaps if math.isfinite(gap)]
    if not gaps:
        return "the run logged no mismatch"
    return f"the run logged a gap of {gaps[0]:.2g} at first and {gaps[-1]:.2g} at last"
