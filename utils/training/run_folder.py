"""The folder of a run: what it holds, and who may write there."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.common import distributed
from utils.common.errors import InputError
from utils.common.files import check_writable, remove_leftovers
from utils.training.agreement import restarted

LAST, BEST = "last.pt", "best.pt"
RESULTS = (LAST, BEST, "metrics.csv", "*_discretized_age.npy", "fold_*")  # of a run, in its folder


def check_run_folder(folder: Path, resume: bool, *sources: Path | None) -> None:
    """Refuse a folder that cannot be written, holds scans, or holds results that the run would replace.

    Processes that torchrun has started anew go on with their run.

    Raises
    ------
    InputError
        If the folder holds a run and `resume` is off, or there is no ``last.pt`` to go on from.
    """
    check_writable(folder, *sources)
    resume = restarted() or resume
    held = [path.name for pattern in RESULTS for path in sorted(folder.glob(pattern))]
    if held and resume and held[0] != LAST:
        raise InputError(
            f"{folder}: holds results ({', '.join(held)}), but no {LAST} to go on from; put it back, or start a new "
            "run in another OUTPUT_DIR (--output_dir)"
        )
    if held and not resume:
        raise InputError(
            f"{folder}: holds a run already ({', '.join(held)}); set another OUTPUT_DIR (--output_dir), "
            "or go on with it by --resume"
        )


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Keep other trainings out of a run's folder, in the first of several processes; remove what a killed one left.

    Raises
    ------
    InputError
        If another training is writing there.
    """
    if distributed.rank():
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not inherited by loaders, which outlive a killed process
        except BlockingIOError:
            raise InputError(
                f"{folder}: another training is writing there; wait for it, or set another OUTPUT_DIR (--output_dir)"
            ) from None
        except OSError:  # a file system without locks
            pass
        remove_leftovers(folder)
        yield
