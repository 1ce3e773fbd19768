"""`gspo what-if`: a saved rollout batch scored under other objectives, without a model.

The batch is taken as one optimizer step. Losses, clipped shares and gradients are in the space of log-probs: what each
objective asks of every token, before any network turns it into weights.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from gspo.cli.saved_step import SavedStep
from gspo.config import RunConfig
from gspo.functional import as_terms, explain, total_loss
from gspo.objectives.base import UnitObjective
from gspo.settings import to_table, validate


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One objective's view of the batch."""

    name: str
    settings: dict[str, Any]
    loss: float
    clipped_sequences: float
    """Share of trained sequences with any clipped unit."""
    clipped_tokens: float
    """Share of trained tokens that hit a bound."""
    share: list[float]
    """Share of each sequence in the sum of absolute gradients, in the order of the file."""
    effective_sequences: float
    """1 / sum of squared shares: how many sequences the gradient is spread over."""
    cosine: dict[str, float | None]
    """Cosine with the gradient of each objective, by name; None where one of the two is 0."""


def objective_of(text: Any, config: RunConfig) -> UnitObjective:
    """An objective from a name or an inline table such as '{name = "gspo", clip_low = 0.1}'."""
    table = {"name": text} if isinstance(text, str) else dict(text)
    if table.get("name") == "dr_grpo":
        table.setdefault("max_length", config.sampling.max_completion_tokens)
    return validate({**to_table(config), "objective": table}, "--objective").objective


def what_if(saved: SavedStep, objectives: Sequence[UnitObjective]) -> list[Verdict]:
    """A verdict for each. Raises ValueError where the run did not keep what an objective reads."""
    for objective in objectives:
        _refuse_missing(objective, saved)
    gradients = {_label(o, objectives): _gradient(o, saved) for o in objectives}
    return [_verdict(o, _label(o, objectives), gradients, saved) for o in objectives]


def _label(objective: UnitObjective, every: Sequence[UnitObjective]) -> str:
    """Its name, numbered where several have it."""
    same = [o for o in every if o.name == objective.name]
    number = next(i for i, o in enumerate(same) if o is objective)
    return objective.name if number == 0 else f"{objective.name}-{number + 1}"


def _refuse_missing(objective: UnitObjective, saved: SavedStep) -> None:
    for term in as_terms(objective):
        if "reference" in term.traits.needs and saved.step.reference_logprobs is None:
            raise ValueError(
                f"{objective.name} reads log-probs of the reference, and this run had none; it would have with e.g. "
                "--terms '[{name = \"reference_kl\", coef = 1e-9}]'"
            )
        if "entropy" in term.traits.needs and not saved.has_entropy:
            raise ValueError(f"{objective.name} reads entropies, and this run's rollouts have none")


def _gradient(objective: UnitObjective, saved: SavedStep) -> tuple[float, Tensor]:
    """(loss, its gradient [B,U] in the log-probs)."""
    terms, step = as_terms(objective), saved.step
    leaf = saved.scores.logprobs.clone().requires_grad_(True)
    weights = [term.weights(step, term.counts(step)) for term in terms]
    loss = total_loss(terms, weights, replace(saved.scores, logprobs=leaf), step)
    (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.item(), gradient


def _verdict(
    objective: UnitObjective, label: str, gradients: dict[str, tuple[float, Tensor]], saved: SavedStep
) -> Verdict:
    loss, gradient = gradients[label]
    mask = saved.step.mask
    hit = (explain(as_terms(objective), saved.scores, saved.step).bound != 0) & mask
    pull = gradient.abs().sum(dim=1)
    share = pull / pull.sum().clamp(min=1e-300)
    return Verdict(
        name=label,
        settings={key: value for key, value in asdict(objective).items() if key != "name"},
        loss=loss,
        clipped_sequences=hit.any(dim=1).sum().item() / max(int(mask.any(dim=1).sum()), 1),
        clipped_tokens=hit.sum().item() / max(int(mask.sum()), 1),
        share=share.tolist(),
        effective_sequences=1 / share.square().sum().item() if pull.any() else 0.0,
        cosine={other: _cosine(gradient, theirs) for other, (_, theirs) in gradients.items()},
    )


def _cosine(one: Tensor, other: Tensor) -> float | None:
    size = one.norm() * other.norm()
    return ((one * other).sum() / size).item() if size > 0 else None


def what_if_table(saved: SavedStep, verdicts: Sequence[Verdict]) -> Table:
    table = Table(
        "objective", "loss", "sequences clipped", "tokens clipped", "effective sequences", "largest share", "cosine",
        title=f"step {saved.number}: {len(saved.rows)} sequences, {int(saved.step.mask.sum())} tokens", box=None,
    )  # fmt: skip
    for verdict in verdicts:
        cosine = verdict.cosine[verdicts[0].name]
        table.add_row(
            verdict.name,
            f"{verdict.loss:+.4g}",
            f"{verdict.clipped_sequences:.1%}",
            f"{verdict.clipped_tokens:.1%}",
            f"{verdict.effective_sequences:.1f}",
            f"{max(verdict.share):.1%}",
            "-" if cosine is None else f"{cosine:+.3f}",
        )
    table.caption = (
        f"the batch as one optimizer step; cosine of gradients in log-prob space with {verdicts[0].name}; sequences "
        "that skipped the network have ratio 1"
    )
    return table
