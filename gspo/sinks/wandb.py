"""Weights & Biases. Sends a run's metrics to the account that `wandb login` set up, once asked for."""

from pathlib import Path
from typing import Any

from gspo.sinks.base import Record


class WandbSink:
    """`wandb.init` when made, `run.log` per record, `run.finish` when closed: the only calls made.

    `run_id` continues an earlier wandb run (`resume="allow"`): pass the same one when a training run resumes.
    """

    def __init__(
        self,
        project: str,
        *,
        name: str | None = None,
        config: dict[str, Any] | None = None,
        folder: Path | str | None = None,
        run_id: str | None = None,
    ):
        try:
            import wandb
        except ImportError as error:
            raise ValueError("wandb is not installed: pip install 'gspo[wandb]'") from error
        self._run = wandb.init(
            project=project,
            name=name,
            config=config,
            dir=None if folder is None else str(folder),
            id=run_id,
            resume=None if run_id is None else "allow",
        )

    def write(self, record: Record) -> None:
        sample = {"sample": record.sample} if record.sample else {}
        self._run.log({**record.metrics, **sample}, step=record.step)

    def close(self) -> None:
        self._run.finish()
