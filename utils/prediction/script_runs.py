"""Run the bash scripts of training and testing from Python, on folders of links to scans."""

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from threading import Event
from types import MappingProxyType
from typing import Any, NamedTuple

from tqdm import tqdm

from utils.common.errors import InputError
from utils.common.files import PROJECT, read_json, sha256_of, write_json
from utils.common.interruption import Interruption
from utils.common.machine import usable_cores
from utils.data.subjects import Subject
from utils.prediction.weights import STAGES
from utils.training.state import FREE_ON_RESUME

LAST_LINES = 12  # of a log, shown when its script failed
# Run a bash script with a PYTHON that prints its arguments instead of starting anything.
SHOW_ARGUMENTS = 'exec() { "$@"; }; show() { printf "%s\\0" "$@"; }; PYTHON=show; source "$0" "$@"'

_running: set["subprocess.Popen[bytes]"] = set()  # scripts


class Step(NamedTuple):
    """Something to do once.

    Parameters
    ----------
    name : str
    product : Path
        The file that shows that it is done.
    run : callable
        Does it, given variables for the scripts that tell the GPUs to use.
    """

    name: str
    product: Path
    run: Callable[[Mapping[str, str]], None]


def link_scans(folder: Path, subjects: Sequence[Subject]) -> None:
    """Make a folder of links to the subjects' scans; existing links stay.

    Raises
    ------
    InputError
        If a link points to another scan, or the folder holds anything else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    others = {path.name for path in folder.iterdir()} - {subject.path.name for subject in subjects}
    if others:
        raise InputError(f"{folder}: holds {min(others)}, too, of other folds; set another OUTPUT_DIR (--output_dir)")
    for subject in subjects:
        link = folder / subject.path.name
        with suppress(FileExistsError):  # another shard may have made it
            link.symlink_to(subject.path.resolve())
        if not link.is_symlink() or link.resolve() != subject.path.resolve():
            raise InputError(f"{link}: is no link to {subject.path}; set another OUTPUT_DIR (--output_dir)")


def _environment(variables: Mapping[str, object]) -> dict[str, str]:
    """Return the environment of a script, without FOLDS, which means another number there."""
    kept = {name: value for name, value in os.environ.items() if name != "FOLDS"}
    given = {name: str(value) for name, value in variables.items()}
    return {**kept, "PYTHON": sys.executable, "PYTHONUNBUFFERED": "1", **given}


def arguments_of_training(stage: int, flags: Sequence[str] = (), **variables: object) -> list[str]:
    """Return the arguments that the bash script of a stage gives to its training script.

    They come from the defaults, the recipe and the environment, followed by `flags`.

    Raises
    ------
    InputError
        If the bash script fails, for example because there is no such recipe.
    """
    name = STAGES[stage - 1]
    done = subprocess.run(
        ["bash", "-c", SHOW_ARGUMENTS, str(PROJECT / f"bash_train_{name}.sh"), *flags],
        env=_environment(variables), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise InputError(done.stderr.strip().removeprefix("error: "))
    words = done.stdout.split("\0")[:-1]
    return words[words.index(str(PROJECT / f"train_{name}.py")) + 1 :]


def check_recorded(
    path: Path,
    label_table: Path,
    trainings: Sequence[Mapping[str, Any]],
    others: Mapping[str, object] = MappingProxyType({}),
) -> None:
    """Write down what all trainings in a folder share, or compare it with what the folder was begun with.

    Parameters
    ----------
    path : Path of a JSON file
    label_table : Path
    trainings : sequence of mapping
        The flags of the training of each stage, by name.
    others : mapping
        Whatever else must not change, by name.

    Raises
    ------
    InputError
        If anything differs, or the folder holds trainings without a record.
    """
    recorded: dict[str, Any] = {"SHA-256 of the label table": sha256_of(label_table), **others}
    for stage, flags in enumerate(trainings, 1):
        chosen = {name: value for name, value in flags.items() if name not in FREE_ON_RESUME}
        recorded |= {f"--{name} of the {STAGES[stage - 1].replace('_', ' ')}": value for name, value in chosen.items()}
    recorded = json.loads(json.dumps(recorded))
    begun = sorted(part.name for part in path.parent.glob("*/")) if path.parent.is_dir() else []
    if not path.exists():  # looked for after the folders, which another shard makes after the record
        if begun:
            raise InputError(
                f"{path.parent}: holds {begun[0]}, but no {path.name} that says how it was made; set another "
                "OUTPUT_DIR (--output_dir)"
            )
        write_json(path, recorded)
        return
    try:
        before = read_json(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); set another OUTPUT_DIR (--output_dir)") from error
    changed = [
        f"{name} was {before[name]}, is {value}"
        for name, value in recorded.items()
        if name in before and before[name] != value  # others are flags that a newer version has
    ]
    if changed:
        raise InputError(f"{path}: {'; '.join(changed)}; set another OUTPUT_DIR (--output_dir)")


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
    share = {"OMP_NUM_THREADS": str(max(1, usable_cores() // jobs))} if jobs > 1 else {}
    with log.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the script inherits it, so it outlives this process
        except BlockingIOError:
            raise InputError(f"{log}: another call is running this script; wait for it, or end it") from None
        except OSError:  # a file system without locks
            pass
        command = ["bash", str(PROJECT / script), *flags]
        environment = {**share, **_environment(variables or {})}
        with subprocess.Popen(command, stdout=file, stderr=file, env=environment) as process:
            _running.add(process)
            status = process.wait()
            _running.discard(process)
    if status:
        lines = log.read_text(errors="replace").strip().splitlines()[-LAST_LINES:]
        raise InputError("\n  ".join([f"{script} failed with status {status}; the end of {log}:", *lines]))


def unfinished(chains: Sequence[Sequence[Step]]) -> list[str]:
    """Return the names of steps that are not done."""
    return [step.name for chain in chains for step in chain if not step.product.exists()]


def run_chains(chains: Sequence[Sequence[Step]], jobs: int) -> None:
    """Do the steps that are not done yet, several chains side by side.

    Parameters
    ----------
    chains : sequence of sequence of Step
        The steps of a chain follow each other.
    jobs : int
        Chains at a time. Each gets its share of the GPUs in CUDA_VISIBLE_DEVICES.

    Raises
    ------
    InputError
        The first failure, after which nothing more is started.
    Interruption
        A signal, which the scripts that are running get, too, so that they save.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    shares: SimpleQueue[dict[str, str]] = SimpleQueue()
    for job in range(jobs):
        gpus = visible.split(",")
        own = gpus[job::jobs] or [gpus[job % len(gpus)]]
        shares.put({"CUDA_VISIBLE_DEVICES": ",".join(own)} if visible else {})
    failed = Event()
    with tqdm(total=sum(map(len, chains)), unit="script", disable=None) as bar, ThreadPoolExecutor(jobs) as pool:

        def run(chain: Sequence[Step]) -> None:
            share = shares.get()
            try:
                for step in chain:
                    if not step.product.exists() and not failed.is_set():
                        bar.set_description(step.name)
                        if not sys.stderr.isatty():
                            print(step.name, flush=True)
                        step.run(share)
                    bar.update()
            except BaseException:
                failed.set()
                raise
            finally:
                shares.put(share)

        try:
            for done in [pool.submit(run, chain) for chain in chains]:
                done.result()
        except BaseException as error:
            failed.set()
            for process in tuple(_running) if isinstance(error, Interruption) else ():
                process.terminate()
            raise
