"""Disks that are full, folders that are read-only, writes that fail: a message, and nothing lost."""

import errno
import os
import resource
import subprocess
from functools import partial

import numpy as np
import pytest

from tests.faults.helpers import differences, on_changes, outcome

SHORT_FORM, LONG_FORM = 2, 60  # changes of files that fail, in each stage
ERRORS = (errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT, errno.EACCES, errno.ESTALE)


def fail(change: int, number: int, current: int, path: str) -> None:
    """Let one change of a file fail."""
    if current == change:
        raise OSError(number, os.strerror(number), path)


def limit_files(size: int) -> None:
    """Let no file of this process grow beyond `size` bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.parametrize("stage", [1, 2])
def test_whatever_write_fails_nothing_is_lost(undisturbed, long_form, tmp_path, stage) -> None:
    whole = undisturbed[stage]
    refused, moments = 0, LONG_FORM if long_form else SHORT_FORM
    changes = np.linspace(whole.changes // 2, whole.changes - 1, moments) if not long_form else (
        np.linspace(1, whole.changes, moments)
    )  # fmt: skip
    for index, change in enumerate(changes.round().astype(int).tolist()):
        root, number = tmp_path / str(index), ERRORS[index % len(ERRORS)]
        status = whole.training.run(root, prepare=partial(on_changes, root, partial(fail, change, number)))
        log = (root / "log.txt").read_text()
        assert status in (0, 2), log  # 0: of the cache, which a run can do without
        assert "Traceback" not in log
        if status == 2:
            refused += 1
            (line,) = (line for line in log.splitlines() if line.startswith("error: "))
            assert os.strerror(number) in line
            assert str(root) in line
        assert [path.name for path in (root / "run").glob(".*") if path.name != ".lock"] == []
        assert whole.training.run(root, "--resume") == 0, (root / "log.txt").read_text()
        assert differences(outcome(root), whole.outcome) == [], f"{change=}"
    print(f"stage {stage}: {refused} of {moments} failed writes ended the run (of {whole.changes} changes of files)")
    assert refused > 0


def test_a_write_that_fails_in_the_middle(undisturbed, tmp_path) -> None:
    """No file may grow beyond half of the largest checkpoint; the state from before the first step is left."""
    whole = undisturbed[2]
    largest = max(map(len, whole.outcome["weights"].values()))
    assert whole.training.run(tmp_path, prepare=partial(limit_files, 2 * largest)) == 2
    log, last = (tmp_path / "log.txt").read_text(), tmp_path / "run" / "last.pt"
    assert f"error: {last}: cannot be written (File too large)" in log
    assert f"{last} holds the last good state: go on with the same command, a training with --resume" in log
    assert "Traceback" not in log
    assert whole.training.run(tmp_path, "--resume") == 0, (tmp_path / "log.txt").read_text()
    assert differences(outcome(tmp_path), whole.outcome) == []


def test_a_full_disk(undisturbed, long_form, tmp_path) -> None:
    """A disk in memory that is too small for the run; then it grows."""
    if not long_form:
        pytest.skip("of the long form")
    whole = undisturbed[1]
    for kilobytes in range(100, 2000, 100):
        disk = tmp_path / f"disk_{kilobytes}"
        disk.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(disk)]
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("no disk may be mounted here")
        try:
            status = whole.training.run(disk, "--cache_folder", "", "--output_dir", disk / "run")
            subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
            log = (disk / "log.txt").read_text()
            print(kilobytes, status, log.strip().splitlines()[-1:])
            assert status in (0, 2), log
            assert whole.training.run(disk, "--cache_folder", "", "--resume") == 0, log
            assert differences(outcome(disk), whole.outcome) == []
        finally:
            subprocess.run(["umount", str(disk)], check=True)
