"""How problems are reported, and with which exit status."""

import errno
import os
import signal

import pytest
from torch.utils.data import DataLoader, Dataset

from utils.common.choices import Shard
from utils.common.errors import InputError, run_command, status_of_scans, user_errors
from utils.common.interruption import STOP_SIGNALS


def fails_with(error: BaseException, capsys) -> tuple[int, list[str]]:
    """Return the exit status and the lines of an entry point that ends in `error`."""

    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as stop:
        run_command(main)
    return stop.value.code, capsys.readouterr().err.splitlines()


def test_problems_are_listed_and_after_twenty_counted(capsys) -> None:
    assert fails_with(InputError("a.nii: is empty; repeat it"), capsys) == (2, ["error: a.nii: is empty; repeat it"])
    status, lines = fails_with(InputError([f"scan {number}" for number in range(27)]), capsys)
    assert status == 2
    assert "27 problems" in lines[0]
    assert lines[20].endswith("scan 19")
    assert "7 more" in lines[21]
    assert len(lines) == 22


@pytest.mark.parametrize(
    "error",
    [ModuleNotFoundError(name="sklearn"), MemoryError(), OSError(errno.EIO, "Input/output error"), OSError(errno.ENOSPC, "No space left on device", "runs/x.pt"),
     PermissionError(errno.EACCES, "Permission denied", "runs/x.pt")],
)  # fmt: skip
def test_what_a_user_can_solve_is_one_line(error, capsys) -> None:
    status, lines = fails_with(error, capsys)
    assert status == 2
    assert len(lines) == 1
    assert lines[0].startswith("error: ")


def test_no_room_for_locks_between_processes_is_told(capsys) -> None:
    """Python names no file then."""
    _, (line,) = fails_with(OSError(errno.ENOSPC, "No space left on device"), capsys)
    assert "in /dev/shm" in line
    assert "--shm-size" in line


def test_one_bad_scan_stops_a_study_only_if_asked_to() -> None:
    """What waits for a job, or for all parts of an array, goes on if the exit status is 0."""
    whole, part = Shard(), Shard(2, 8)
    for doubtful, failed in ((0, 0), (1, 0), (0, 1), (2, 2)):
        assert status_of_scans(5, doubtful, failed, False, whole) == 0
        assert status_of_scans(5, doubtful, failed, True, whole) == (doubtful + failed > 0)
    assert status_of_scans(3, 0, 3, False, whole) == 1
    assert status_of_scans(1, 0, 1, False, part) == 0
    assert status_of_scans(1, 0, 1, True, part) == 1
    assert status_of_scans(0, 0, 0, True, part) == 0  # fewer scans than parts


def test_an_interruption_has_a_status_of_its_own(capsys) -> None:
    for number in STOP_SIGNALS:
        before = signal.signal(number, signal.SIG_DFL)  # whatever it was
        try:
            with pytest.raises(SystemExit) as stop:
                run_command(lambda number=number: os.kill(os.getpid(), number))
            assert signal.getsignal(number) is signal.SIG_DFL
        finally:
            signal.signal(number, before)
        assert stop.value.code == 128 + number
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"stopped by {number.name}; go on with the same command, a training with --resume")


def test_a_signal_that_the_caller_ignores_stays_ignored(monkeypatch) -> None:
    monkeypatch.setattr("utils.common.interruption.STOP_SIGNALS", (signal.SIGHUP,))
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        run_command(lambda: os.kill(os.getpid(), signal.SIGHUP))
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("error", [OSError(errno.ENOENT, "No such file"), RuntimeError("a bug"), KeyError("a bug")])
def test_anything_else_keeps_its_traceback(error) -> None:
    def main() -> None:
        raise error

    with pytest.raises(type(error)):
        run_command(main)


def test_user_errors_name_the_place() -> None:
    with pytest.raises(InputError, match=r"^best\.pt: is broken$"), user_errors("best.pt"):
        raise ValueError("is broken")


class Unreadable(Dataset):
    """A data set whose only scan has a problem."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> None:
        raise InputError("a.nii: has changed since it was checked; start the same command again")


def test_a_problem_in_a_loaders_worker_has_no_traceback(capsys) -> None:
    with pytest.raises(InputError) as caught:
        next(iter(DataLoader(Unreadable(), num_workers=1)))
    status, lines = fails_with(caught.value, capsys)
    assert (status, lines) == (2, ["error: a.nii: has changed since it was checked; start the same command again"])
