"""What objectives and estimators ask of a run, checked before its first step."""

from collections.abc import Iterable, Sequence

from gspo.advantages.base import AdvantageEstimator
from gspo.objectives.base import UnitObjective

VALUE_COLUMN = "value"
"""Data column with a value estimate of the prompt."""


def unmet(
    terms: Sequence[UnitObjective],
    advantage: AdvantageEstimator,
    *,
    group_size: int,
    updates_per_rollout: int,
    columns: Iterable[str] | None = None,
    reward_functions: int | None = None,
    units_compete: bool = False,
) -> list[str]:
    """One sentence for each requirement that the run does not meet; what is None is not known yet and passes."""
    found = []
    reads_advantage = any(term.traits.reads_advantage for term in terms)
    for term in terms:
        if term.traits.min_group > group_size:
            found.append(
                f"objective {term.name} compares completions of one prompt: group_size must be at least "
                f"{term.traits.min_group}, it is {group_size}"
            )
        if term.traits.is_on_policy and updates_per_rollout > 1:
            found.append(_on_policy(f"objective {term.name}", updates_per_rollout))
        gives_units = advantage.traits.gives_units or units_compete
        if gives_units and term.traits.reads_advantage and not term.traits.takes_unit_advantage:
            what = "the set of classes" if units_compete else f"advantage {advantage.name}"
            found.append(
                f"{what} gives an advantage per unit here and objective {term.name} takes one per sequence; use "
                "gspo_token, or a token objective such as grpo"
            )
        if units_compete and term.traits.keeps_groups_whole:
            found.append(f"objective {term.name} compares whole completions, and here the units of one compete")
    if not reads_advantage:
        return found
    if units_compete and (advantage.traits.gives_units or set(advantage.traits.needs) & {"mask", "reference"}):
        found.append(
            f"advantage {advantage.name} is for completions of several tokens, and here classes compete; use group_std"
        )
    if advantage.traits.min_group > group_size:
        found.append(
            f"advantage {advantage.name} needs a group_size of at least {advantage.traits.min_group}, it is "
            f"{group_size}: every advantage would be 0"
        )
    if advantage.traits.is_on_policy and updates_per_rollout > 1:
        found.append(_on_policy(f"advantage {advantage.name}", updates_per_rollout))
    wanted = advantage.traits.reward_columns
    if wanted and reward_functions is not None and wanted != reward_functions:
        found.append(f"advantage {advantage.name} has {wanted} weights and the run {reward_functions} reward functions")
    if "values" in advantage.traits.needs and columns is not None and VALUE_COLUMN not in columns:
        found.append(
            f"advantage {advantage.name} needs a column {VALUE_COLUMN!r} in the data, the value estimate of each "
            "prompt; gspo values makes one"
        )
    return found


def _on_policy(what: str, updates: int) -> str:
    table = what.split()[0]
    return (
        f"{what} is right for one update per rollout batch and this run makes {updates} (updates_per_step x epochs); "
        f"set updates_per_step = 1 and epochs = 1, or {table}.off_policy = true to go on all the same"
    )
