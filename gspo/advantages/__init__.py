"""Advantage estimators. To add one, write the file and add it to `Advantage`."""

from typing import Annotated

from pydantic import Discriminator

from gspo.advantages.base import AdvantageEstimator, AdvantageInput
from gspo.advantages.group import RLOO, BatchStd, GroupMean, GroupStd

Advantage = Annotated[GroupStd | GroupMean | RLOO | BatchStd, Discriminator("name")]
"""What a recipe may name under `advantage`."""

__all__ = ["RLOO", "Advantage", "AdvantageEstimator", "AdvantageInput", "BatchStd", "GroupMean", "GroupStd"]
