"""Long trainings: memory and file descriptors stay as they are, also those of the processes that read scans."""

import json
import multiprocessing
import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tests.faults.helpers import Training
from utils.training.run_log import RunLog

EPOCHS, WARM_UP = 300, 60
TOLERANCE = 0.02


def usage(process: int) -> dict[str, int]:
    """Memory in KiB (resident) and open file descriptors of a process."""
    status = Path(f"/proc/{process}/status").read_text()
    (resident,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))
    return {"memory": int(resident), "descriptors": len(os.listdir(f"/proc/{process}/fd"))}


def record_usage(path: Path) -> None:
    """Write the usage of this process and its workers after each epoch, a line each."""
    add_epoch = RunLog.add_epoch

    def add_and_record(log, *args) -> None:
        add_epoch(log, *args)
        workers = sorted(child.pid for child in multiprocessing.active_children())
        with path.open("a") as file:
            file.write(json.dumps([usage(process) for process in (os.getpid(), *workers)]) + "\n")

    RunLog.add_epoch = add_and_record


def test_memory_and_descriptors_stay_flat(synthetic_cohort, first_stage, tmp_path, long_form) -> None:
    if not long_form:
        pytest.skip("of the long form")
    script = Training.of(2, synthetic_cohort, first_stage, folds=0)
    path = tmp_path / "usage.jsonl"
    status = script.run(
        tmp_path, "--epochs", EPOCHS, "--num_workers", 1, "--batch_size", 6, prepare=partial(record_usage, path)
    )
    assert status == 0, (tmp_path / "log.txt").read_text()
    epochs = [json.loads(line) for line in path.read_text().splitlines()]  # the main process, then its workers
    assert len(epochs) == EPOCHS
    assert {len(processes) for processes in epochs} == {2}  # the worker persists; those of validation are gone
    for index, name in enumerate(("main process", "worker")):
        for kind in ("memory", "descriptors"):
            values = np.array([processes[index][kind] for processes in epochs])[WARM_UP:]
            growth = values[-20:].mean() / values[:20].mean() - 1
            print(f"{name}, {kind}: {values[:20].mean():.0f} after {WARM_UP} epochs, {values[-20:].mean():.0f} after "
                  f"{EPOCHS} ({100 * growth:+.2f} %), at most {values.max()}")  # fmt: skip
            assert values.max() <= (1 + TOLERANCE) * values[:20].mean(), f"{name}: {kind}"
