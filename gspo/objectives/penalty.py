"""What terms that do not follow the advantage share: a choice of averaging, and their traits."""

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from gspo.averaging import Counts, row_mean, unit_mean
from gspo.objectives.base import Traits
from gspo.types import Need, Step

Averaging = Literal["sequence", "token"]


def averaged(averaging: Averaging, step: Step, counts: Counts) -> Float[Tensor, "B U"]:
    return row_mean(step, counts) if averaging == "sequence" else unit_mean(step, counts)


def penalty_traits(averaging: Averaging, *needs: Need) -> Traits:
    """What terms that do not follow the advantage have in common."""
    return Traits(
        needs=needs,
        reads_advantage=False,
        counts_empty_rows=averaging == "sequence",
        skips_zero_advantage=False,
        is_policy_gradient=False,
    )
