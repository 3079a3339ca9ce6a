"""What a run writes for people: hyperparameters, metrics.csv, TensorBoard curves, a line an epoch."""

import csv
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from utils.common import distributed
from utils.common.files import replacing, write_json
from utils.common.provenance import describe_run
from utils.evaluation.metrics import Predictions
from utils.evaluation.reports import plot_ages

SPEEDS = ("scans_per_second", "waiting_for_data")  # scalars that differ between equal runs
Row = dict[str, float]


class RunLog:
    """The log of one run; only the first of several processes writes it.

    Parameters
    ----------
    folder : Path
        Gets ``hyperparameters.json``, ``metrics.csv`` and TensorBoard's events.
    flags : mapping of plain values
    device : torch.device
    epoch : int
        At which the run begins or goes on; earlier events of it and of later epochs are void.
    """

    def __init__(self, folder: Path, flags: Mapping[str, Any], device: torch.device, epoch: int) -> None:
        self.folder = folder
        self.flags = flags
        self.writer = None
        if distributed.rank() == 0:
            write_json(folder / "hyperparameters.json", {**flags, **describe_run(device)})
            threading.excepthook = _leave_to_the_writer
            self.writer = SummaryWriter(str(folder), purge_step=epoch)

    def add_epoch(self, history: Sequence[Row], epochs: int, best: bool, notes: str) -> None:
        """Write the last epoch of `history` down and print it.

        Parameters
        ----------
        history : sequence of dict of str to float
            Every epoch's scalars.
        epochs : int
            At most.
        best : bool
            Whether to mark the epoch as the best so far.
        notes : str
            To print behind it.
        """
        if self.writer is None:
            return
        row = history[-1]
        for key, value in row.items():
            if key != "epoch":
                self.writer.add_scalar(key, value, int(row["epoch"]))
        self.writer.flush()
        with replacing(self.folder / "metrics.csv") as temporary, temporary.open("w", newline="") as file:
            table = csv.DictWriter(file, list(dict.fromkeys(key for row in history for key in row)))
            table.writeheader()
            table.writerows(history)
        tqdm.write(_describe_epoch(row, epochs, best) + notes)

    def add_figure(self, predictions: Predictions, epoch: int) -> None:
        """Draw the validation subjects' brain ages for TensorBoard."""
        if self.writer is not None:
            figure = plot_ages(
                predictions["chronological_age"], predictions["brain_age"], f"Validation, epoch {epoch + 1}"
            )
            self.writer.add_figure("valid/brain_age", figure, epoch)

    def close(self, best: Row) -> None:
        """Write the hyperparameters beside the scalars of the best epoch, and close the files."""
        if self.writer is None:
            return
        plain = {key: v if isinstance(v, int | float | bool) else str(v) for key, v in self.flags.items()}
        scalars = {f"best/{key}": value for key, value in best.items() if key not in SPEEDS}
        self.writer.add_hparams(plain, scalars, run_name=".")
        self.writer.close()


def _leave_to_the_writer(failure: threading.ExceptHookArgs) -> None:
    """Print no traceback of a failed write in TensorBoard's thread; the writer raises it again in the main thread."""
    if not issubclass(failure.exc_type, OSError):
        threading.__excepthook__(failure)


def _describe_epoch(row: Row, epochs: int, best: bool) -> str:
    valid = f" valid {row['valid/mae']:.2f}" if "valid/mae" in row else ""
    return (
        f"epoch {int(row['epoch']) + 1:>3}/{epochs}  loss {row['train/loss']:.2f}  "
        f"MAE train {row['train/mae']:.2f}{valid} years{' (best)' if best else ''}  "
        f"learning rate {row['learning_rate']:.1e}  {row['scans_per_second']:.1f} scans/s"
    )
