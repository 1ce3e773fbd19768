"""TensorBoard event files, read with `tensorboard --logdir RUN`."""

from pathlib import Path

from gspo.sinks.base import Record


class TensorBoardSink:
    """Every metric as a scalar under its own name, the sampled completion as text. Local files only."""

    def __init__(self, folder: Path | str):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ValueError("TensorBoard is not installed: pip install 'gspo[tensorboard]'") from error
        self._writer = SummaryWriter(log_dir=str(folder))

    def write(self, record: Record) -> None:
        for name, value in record.metrics.items():
            self._writer.add_scalar(name, value, global_step=record.step)
        if record.sample:
            # Indented by four: TensorBoard renders text as Markdown, and a completion must be shown as it is.
            self._writer.add_text("sample", "    " + record.sample.replace("\n", "\n    "), record.step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
