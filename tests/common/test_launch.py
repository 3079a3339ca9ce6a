"""Several processes fail as one: one report, with the number of the process, and one status."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import QUICK, ROOT, data_flags

SCRIPT = """
import os, signal, sys
import torch
from utils.common import distributed
from utils.common.errors import InputError, run_command

def main():
    case, rank = sys.argv[1], int(os.environ["RANK"])
    if case == "before the processes are connected" and rank == 1:
        raise InputError("labels.csv: is missing")
    if case == "one GPU for two":
        torch.cuda.is_available, torch.cuda.device_count = lambda: True, lambda: 1
    distributed.start("auto")
    if rank == 1:
        if case == "in one process":
            raise InputError("labels.csv: is missing")
        if case == "by a bug":
            raise KeyError("a bug")
        if case == "by a kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if case == "by a signal":
            os.kill(os.getppid(), signal.SIGUSR1)
        if case == "by a signal to one process":
            os.kill(os.getpid(), signal.SIGTERM)
    print("connected", flush=True)
    distributed.gather_objects(rank)  # the others wait here
    signal.pause()

run_command(main, several=True)
"""
ONE = "error: rank 1: labels.csv: is missing"
LOST = "error: rank 0: the connection to another process is lost; it was killed, or its machine cannot be reached"
KILLED = "error: rank 1: was killed by SIGKILL, perhaps for want of memory; lower BATCH_SIZE or NUM_WORKERS"
STOPPED = "stopped by {}; go on with the same command, a training with --resume"


def launch(*command: object, module: str = "utils.common.launch", status: int = 0) -> list[str]:
    """Run a script in two processes; return the lines of its error stream."""
    result = subprocess.run(
        [sys.executable, "-m", module, "--standalone", "--nproc_per_node", "2", *map(str, command)],
        capture_output=True, text=True, check=False, cwd=ROOT, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert result.returncode == status, result.stdout + result.stderr
    attempts = 1 + int(command[1]) if command[0] == "--max_restarts" else 1
    assert result.stdout.count("connected") <= attempts  # the first process alone prints
    return [line for line in result.stderr.splitlines() if line]


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


@pytest.mark.parametrize(
    ("case", "status", "expected"),
    [
        ("before the processes are connected", 2, [ONE]),
        ("in one process", 2, [ONE]),
        ("by a signal", 128 + signal.SIGUSR1, [STOPPED.format("SIGUSR1")]),
        ("by a signal to one process", 128 + signal.SIGTERM, [STOPPED.format("SIGTERM")]),
    ],
)
def test_a_failure_is_told_once_and_ends_all(script, case, status, expected) -> None:
    assert launch(script, case, status=status) == expected


def test_a_killed_process_is_named(script) -> None:
    """By the launcher; torchrun ends the others, which may have lost the connection before."""
    *others, last = launch(script, "by a kill", status=128 + signal.SIGKILL)
    assert last == KILLED
    assert set(others) <= {LOST, STOPPED.format("SIGTERM")}


def test_only_what_the_user_cannot_solve_is_started_anew(script) -> None:
    assert launch("--max_restarts", 2, script, "in one process", status=2) == [ONE]
    lines = launch("--max_restarts", 1, script, "by a bug", status=1)
    assert sum("Traceback" in line for line in lines) == 2


def test_a_gpu_is_missing(script) -> None:
    (line,) = launch(script, "one GPU for two", status=2)
    assert "2 processes need as many GPUs, but 1 can be seen" in line
    assert "PROCESSES" in line


def test_a_bug_in_one_process_has_one_traceback(script) -> None:
    lines = launch(script, "by a bug", status=1)
    assert lines[:2] == ["rank 1:", "Traceback (most recent call last):"]
    assert lines[-1] == "KeyError: 'a bug'"
    assert sum("Traceback" in line for line in lines) == 1


def test_torchrun_itself_leaves_the_line_readable(script) -> None:
    """It adds its own traceback below."""
    assert launch(script, "in one process", module="torch.distributed.run", status=1)[0] == ONE


def test_what_is_wrong_in_every_process_is_told_once() -> None:
    (line,) = launch("train_first_stage.py", "--batch_size", "0", status=2)
    assert line.startswith("error: rank ")
    assert "--batch_size" in line


@pytest.mark.parametrize("script", ["predict.py"])
def test_what_runs_in_one_process_says_so(script) -> None:
    (line,) = launch(script, status=2)
    assert line.endswith(f": {script} runs in one process; start it without torchrun")


def test_two_processes_test_like_one(synthetic_cohort, first_stage, second_stage, run_here, tmp_path) -> None:
    """The same ages, bit for bit, and each file written once."""
    flags = [*data_flags(synthetic_cohort, "test"), *QUICK, "--checkpoint", second_stage / "best.pt",
             "--first_stage_checkpoint", first_stage / "best.pt"]  # fmt: skip
    run_here("test_second_stage.py", *flags, "--output_dir", tmp_path / "one")
    assert launch("test_second_stage.py", *flags, "--output_dir", tmp_path / "two") == []
    one, two = (np.load(tmp_path / name / "predictions.npz") for name in ("one", "two"))
    for name in one.files:
        np.testing.assert_array_equal(one[name], two[name])
