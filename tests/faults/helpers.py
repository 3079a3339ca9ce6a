"""Trainings in processes of their own that are killed, or whose writes fail, at chosen moments."""

import csv
import importlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch._dynamo  # noqa: F401 (every process would import it, which takes longer than its training)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.conftest import QUICK, SMALL_NETWORK, VOXEL_SIZE, data_flags
from tests.training.helpers import same, states
from utils.common.errors import run_command
from utils.common.interruption import STOP_SIGNALS
from utils.training.run_log import SPEEDS

CHANGES = ("os.rename", "os.remove", "os.mkdir")  # audit events of files, besides those that open them for writing
WRITING = os.O_WRONLY | os.O_RDWR
SERVER = get_context("forkserver")  # imports everything once; the process of the tests has threads, which do not fork
SERVER.set_forkserver_preload(["tests.faults.helpers", "train_first_stage", "train_second_stage"])


@dataclass
class Training:
    """A training script and its flags, but for the output folder and the cache, which lie in one folder."""

    script: str
    flags: list[object]

    @classmethod
    def of(cls, stage: int, cohort: Path, first_stage: Path, folds: int) -> "Training":
        """Return a training of two epochs, 4 steps each; that of the first stage writes tables, too."""
        common = [*QUICK, "--epochs", 2, "--warmup_epochs", 0, "--batch_size", 3, "--save_every_steps", 2]
        if stage == 1:
            splits = data_flags(cohort, "train", "valid", "test")
            own = [*SMALL_NETWORK, "--voxel_size", VOXEL_SIZE, "--folds", folds, *splits]
            return cls("train_first_stage.py", [*common, *own])
        own = ["--first_stage_checkpoint", first_stage / "best.pt", *data_flags(cohort, "train", "valid")]
        return cls("train_second_stage.py", [*common, *own])

    def start(self, root: Path, *more: object, prepare: Callable[[], None] | None = None) -> Any:
        """Start the script; return its process.

        Parameters
        ----------
        root : Path
            Gets ``run``, ``cache`` and ``log.txt``.
        *more : objects
            Further flags.
        prepare : callable that can be pickled
            Called in the process before the script.
        """
        root.mkdir(parents=True, exist_ok=True)
        words = [*self.flags, "--output_dir", root / "run", "--cache_folder", root / "cache", *more]
        process = SERVER.Process(target=run_logged, args=(self.script, [*map(str, words)], root / "log.txt", prepare))
        process.start()
        return process

    def run(self, root: Path, *more: object, prepare: Callable[[], None] | None = None) -> int:
        """Run the script; return its exit status, or minus the number of the signal that killed it."""
        process = self.start(root, *more, prepare=prepare)
        process.join()
        return process.exitcode

    def killed(self, root: Path, change: int, seconds: float) -> int:
        """Run the script, and kill it some time after it begins to make its `change`-th change of a file.

        Parameters
        ----------
        root : Path
        change : int
            Counted from 1; 0: the start of the script.
        seconds : float

        Returns
        -------
        int
            The exit status, as of `run`; not that of SIGKILL if the script was done before.
        """
        reader, writer = SERVER.Pipe(duplex=False)
        process = self.start(root, prepare=partial(on_changes, root, partial(tell, writer, change)))
        wait([reader, process.sentinel])
        time.sleep(seconds)
        process.kill()
        process.join()
        return process.exitcode

    def count_changes(self, root: Path) -> int:
        """Run the script undisturbed; return how many changes of files it makes."""
        counter = root.with_name("changes")
        counter.unlink(missing_ok=True)
        assert self.run(root, prepare=partial(on_changes, root, partial(count, counter))) == 0
        return counter.stat().st_size


def run_logged(script: str, words: list[str], log: Path, prepare: Callable[[], None] | None) -> None:
    """Run a script in a process of its own, and end the process with its exit status."""
    status = 99
    try:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", 1, closefd=False) for number in (1, 2))
        sys.argv = [script, *words]
        for number in STOP_SIGNALS:  # nohup, or a shell in the background, may ignore them
            signal.signal(number, signal.SIG_DFL)
        if prepare:
            prepare()
        run_command(importlib.import_module(script.removesuffix(".py")).main)
        status = 0
    except SystemExit as stop:
        status = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def tell(writer: Any, change: int, number: int, _path: str) -> None:
    """Tell another process of one change of a file."""
    if number == change:
        writer.send_bytes(b".")


def count(counter: Path, _number: int, _path: str) -> None:
    """Add a byte to a file."""
    with counter.open("ab") as file:
        file.write(b".")


def on_changes(root: Path, act: Callable[[int, str], None]) -> None:
    """Call a function at once, and before each change of a file below `root` that this process makes from now on.

    It gets the number of the change, from 1 (0 at once), and the path.
    Opening a file for writing counts, renaming, removing, making a folder.
    What it raises is the error of the change.
    """
    number = 0
    act(number, "")

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal number
        if event == "open":
            path, mode, flags = args
            changes = any(letter in mode for letter in "wax+") if mode else flags & WRITING
        else:
            path, changes = (args[0], True) if event in CHANGES else (None, False)
        if changes and isinstance(path, str | bytes | Path) and os.fsdecode(path).startswith(f"{root}/"):
            number += 1
            act(number, os.fsdecode(path))

    sys.addaudithook(hook)


def outcome(root: Path) -> dict[str, Any]:
    """What a run has ended with, without speeds: weights, state, tables, metrics, curves, forgotten files."""
    run = root / "run"
    with (run / "metrics.csv").open() as file:
        metrics = [{key: value for key, value in row.items() if key not in SPEEDS} for row in csv.DictReader(file)]
    curves = EventAccumulator(str(run)).Reload()
    tags = [tag for tag in curves.Tags()["scalars"] if tag not in SPEEDS and not tag.startswith("best/")]
    return {
        "weights": {str(path.relative_to(run)): path.read_bytes() for path in sorted(run.rglob("best.pt"))},
        "state": states(run),
        "tables": {path.name: path.read_bytes() for path in sorted(run.glob("*.npy"))},
        "metrics": metrics,
        "curves": {tag: [(scalar.step, scalar.value) for scalar in curves.Scalars(tag)] for tag in sorted(tags)},
        "forgotten files": sorted(path.name for path in root.rglob(".*") if path.name != ".lock"),
    }


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Which parts of two outcomes differ."""
    return [name for name in one if not same(one[name], other[name])]
