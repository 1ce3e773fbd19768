"""Where a run's metrics go: a file always, trackers and the terminal on request."""

from gspo.sinks.base import Record, Sink
from gspo.sinks.console import Console, before_after_table
from gspo.sinks.jsonl import JsonlSink, truncate_after
from gspo.sinks.tensorboard import TensorBoardSink
from gspo.sinks.trackio import TrackioSink
from gspo.sinks.wandb import WandbSink

__all__ = [
    "Console",
    "JsonlSink",
    "Record",
    "Sink",
    "TensorBoardSink",
    "TrackioSink",
    "WandbSink",
    "before_after_table",
    "truncate_after",
]
