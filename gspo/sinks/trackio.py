"""Trackio: a local dashboard with wandb's calls (`trackio show`). Data stays on this machine."""

from typing import Any

from gspo.sinks.base import Record


class TrackioSink:
    """`trackio.init` when made, `trackio.log` per record, `trackio.finish` when closed: the only calls made.

    No `space_id` is passed, so nothing leaves the machine. A run of the same name is continued.
    """

    def __init__(self, project: str, *, name: str | None = None, config: dict[str, Any] | None = None):
        try:
            import trackio
        except ImportError as error:
            raise ValueError("trackio is not installed: pip install 'gspo[trackio]'") from error
        self._trackio = trackio
        trackio.init(project=project, name=name, config=config, resume="allow")

    def write(self, record: Record) -> None:
        sample = {"sample": record.sample} if record.sample else {}
        self._trackio.log({**record.metrics, **sample}, step=record.step)

    def close(self) -> None:
        self._trackio.finish()
