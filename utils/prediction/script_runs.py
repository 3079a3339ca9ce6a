"""Run the bash scripts of training and testing from Python, on folders of links to scans."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from utils.common.errors import InputError
from utils.common.files import PROJECT
from utils.data.subjects import Subject

LAST_LINES = 12  # of a log, shown when its script failed


def link_scans(folder: Path, subjects: Sequence[Subject]) -> None:
    """Make a folder of links to the subjects' scans; existing links stay.

    Raises
    ------
    InputError
        If a link points to another scan.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for subject in subjects:
        link = folder / subject.path.name
        if not link.is_symlink():
            link.symlink_to(subject.path.resolve())
        elif link.resolve() != subject.path.resolve():
            raise InputError(f"{link}: is no link to {subject.path}; set another OUTPUT_DIR (--output_dir)")


def script_environment() -> dict[str, str]:
    """Return the environment of the scripts, without FOLDS, which means another number there."""
    kept = {name: value for name, value in os.environ.items() if name != "FOLDS"}
    return {**kept, "PYTHON": sys.executable, "PYTHONUNBUFFERED": "1"}


def run_script(
    log: Path, script: str, flags: Sequence[str] = (), variables: Mapping[str, object] | None = None, jobs: int = 1
) -> None:
    """Run a bash script with its share of the cores.

    Parameters
    ----------
    log : Path
        Its output is appended to this file.
    script : str
        Name of a bash script of the project.
    flags : sequence of str
    variables : mapping of str to object
        Win over those of the environment.
    jobs : int
        How many scripts run side by side.

    Raises
    ------
    InputError
        If it fails, with the end of its log.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    share = {"OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // jobs))} if jobs > 1 else {}
    given = {name: str(value) for name, value in (variables or {}).items()}
    with log.open("a") as file:
        command = ["bash", str(PROJECT / script), *flags]
        environment = {**share, **script_environment(), **given}
        status = subprocess.run(command, stdout=file, stderr=file, env=environment, check=False).returncode
    if status:
        lines = log.read_text(errors="replace").strip().splitlines()[-LAST_LINES:]
        raise InputError("\n  ".join([f"{script} failed with status {status}; the end of {log}:", *lines]))
