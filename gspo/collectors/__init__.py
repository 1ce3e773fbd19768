"""Collectors decide which groups become a training batch: the only region that may run beside training."""

from gspo.collectors.base import Collected, Collector
from gspo.collectors.direct import Direct
from gspo.collectors.draft_then_refine import DraftThenRefine
from gspo.collectors.episodes import EpisodeSource
from gspo.collectors.refill import Refill
from gspo.collectors.source import GroupSource, Source
from gspo.collectors.turn_forks import TurnForks

__all__ = [
    "Collected",
    "Collector",
    "Direct",
    "DraftThenRefine",
    "EpisodeSource",
    "GroupSource",
    "Refill",
    "Source",
    "TurnForks",
]
