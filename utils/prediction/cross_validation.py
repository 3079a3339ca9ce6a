"""Cross-validate both stages by running the training and test scripts fold by fold."""

import csv
import json
import os
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from utils.common.errors import InputError
from utils.common.files import replacing, sha256_of, write_json
from utils.data.cohort import split_into_folds
from utils.data.subjects import Subject
from utils.evaluation.metrics import INTERVAL_COVERAGE, Predictions, interval_radius, residual_sd_within_bins

Report = Callable[[Predictions], tuple[dict[str, float], str]]

ROOT = Path(__file__).resolve().parents[2]
TABLE = "folds.csv"
ALL = "all"  # the fold of no test subjects
OWN_FLAGS = {
    *(f"--{split}_folder" for split in ("train", "valid", "test")),
    *("--output_dir", "--label_table", "--excel_path", "--seed", "--resume", "--keep"),
    *("--first_stage_checkpoint", "--first_stage_net", "--precision"),
}
FEWEST_FOR_WEIGHTS = 10  # subjects: fewer give no 90 % interval
LAST_LINES = 12  # of a log, shown when its script failed
TESTS = {1: "first_stage_test", 2: "test"}  # folders of a member's predictions
COLUMNS = ("first_stage_age", "discretized_age", "residual_age")


def write_folds(folder: Path, subjects: Sequence[Subject], folds: int, seed: int) -> np.ndarray:
    """Decide who is tested in which fold, once and for all of a folder's runs.

    Parameters
    ----------
    folder : Path
        Gets ``folds.csv``; an existing one must say the same.
    subjects : sequence of N Subject
    folds : int
    seed : int

    Returns
    -------
    (N,) int array, the fold of each subject, from 1

    Raises
    ------
    InputError
        If the folder holds other folds.
    """
    fold = np.zeros(len(subjects), int)
    for number, (_, part) in enumerate(split_into_folds(subjects, folds, seed), 1):
        fold[part] = number
    rows = [
        [subject.subject_id, f"{subject.chronological_age:.4f}", str(number), subject.path.name]
        for subject, number in zip(subjects, fold, strict=True)
    ]
    path = folder / TABLE
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            if list(csv.reader(file))[1:] != rows:
                raise InputError(f"{path}: holds other subjects or folds; set another OUTPUT_DIR (--output_dir)")
        return fold
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["subject_id", "age", "fold", "scan"], *rows])
    return fold


def remember_settings(folder: Path, args: Namespace, trainings: Sequence[Mapping[str, Any]]) -> None:
    """Write down the flags of all trainings, or refuse other ones than those that the folder was begun with.

    Parameters
    ----------
    folder : Path
    args : Namespace
        Of `utils.options.prediction.cross_validation_parser`.
    trainings : sequence of mapping
        The flags of each stage's training, the recipe's among them.

    Raises
    ------
    InputError
        If they differ, or a flag is given that cross-validation sets itself.
    """
    given = [*args.flags, *args.first_stage_flags, *args.second_stage_flags]
    own = [flag for flag in given if flag.split("=")[0] in OWN_FLAGS]
    if own:
        raise InputError(f"{', '.join(own)}: cross-validation sets this itself; leave it out of the flags")
    settings: dict[str, Any] = {"precision": args.precision, "labels": sha256_of(args.label_table)}
    for stage, flags in enumerate(trainings, 1):
        settings |= {f"flag --{name} of stage {stage}": value for name, value in flags.items()}
    settings = json.loads(json.dumps(settings))
    path = folder / "settings.json"
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        changed = [name for name in settings if before.get(name) != settings[name]]
        if changed:
            raise InputError(
                f"{path}: was begun with other {', '.join(changed)}; set another OUTPUT_DIR (--output_dir)"
            )
    else:
        write_json(path, settings)


def link_scans(folder: Path, subjects: Sequence[Subject]) -> None:
    """Make a folder of links to the subjects' scans; what is there already stays.

    Raises
    ------
    InputError
        If it holds links to others.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for subject in subjects:
        link = folder / subject.path.name
        if not link.is_symlink():
            link.symlink_to(subject.path.resolve())
        elif link.resolve() != subject.path.resolve():
            raise InputError(f"{link}: is no link to {subject.path}; set another OUTPUT_DIR (--output_dir)")


def flags_of_stage(stage: int, args: Namespace) -> list[str]:
    """Return the flags that both the user and cross-validation give to the training of a stage."""
    return ["--valid_folder", "", *args.flags, *(args.first_stage_flags if stage == 1 else args.second_stage_flags)]


def commands(folder: Path, member: int, tested: bool, args: Namespace) -> Iterator[tuple[Path, list[str]]]:
    """Give the scripts to run for one member of a fold, in their order, with what each leaves behind.

    Parameters
    ----------
    folder : Path
        Of the fold, with ``train`` and ``test``.
    member : int, from 1
    tested : bool
        Whether there are subjects to test.
    args : Namespace
        Of `utils.options.prediction.cross_validation_parser`.

    Yields
    ------
    product : Path
        The file that says that the script has finished.
    command : list of str
    """
    own = folder / f"member_{member}"
    machine = ["--label_table", args.label_table, "--num_workers", args.num_workers, "--device", args.device,
               "--precision", args.precision, "--cache_folder", args.cache_folder or ""]  # fmt: skip
    train = [*machine, "--train_folder", folder / "train", "--seed", args.seed + member - 1, "--resume"]
    first, second = own / "first_stage", own / "second_stage"
    best = ["--first_stage_checkpoint", first / "best.pt"]
    scripts = [
        (first / "train_discretized_age.npy", "train_first_stage.py",
         [*train, *flags_of_stage(1, args), "--test_folder", "", "--output_dir", first]),
    ]  # fmt: skip
    test = [*machine, "--test_folder", folder / "test", "--output_dir", own / TESTS[args.stages]]
    if args.stages == 1:
        test_script = "test_first_stage.py", [*test, "--checkpoint", first / "best.pt"]
    else:
        scripts.append(
            (second / "best.pt", "train_second_stage.py",
             [*train, *flags_of_stage(2, args), *best, "--output_dir", second])
        )  # fmt: skip
        test_script = "test_second_stage.py", [*test, *best, "--checkpoint", second / "best.pt"]
    if tested:
        scripts.append((own / TESTS[args.stages] / "predictions.csv", *test_script))
    for product, script, flags in scripts:
        yield product, [sys.executable, str(ROOT / script), *map(str, flags)]


def run_all(folder: Path, subjects: Sequence[Subject], fold: np.ndarray, args: Namespace) -> None:
    """Train and test every member of every fold that is not finished yet.

    Parameters
    ----------
    folder : Path
    subjects : sequence of N Subject
    fold : (N,) int array, from 1
    args : Namespace
        Of `utils.options.prediction.cross_validation_parser`.

    Raises
    ------
    InputError
        If a script fails, with the end of its log.
    """
    parts = {f"fold_{number}": fold == number for number in range(1, args.folds + 1)}
    if args.weights_dir:
        parts[ALL] = np.zeros(len(subjects), bool)
    work = []
    for name, tested in parts.items():
        link_scans(folder / name / "train", [s for s, own in zip(subjects, tested, strict=True) if not own])
        if tested.any():
            link_scans(folder / name / "test", [s for s, own in zip(subjects, tested, strict=True) if own])
        for member in range(1, args.members + 1):
            work += [(name, member, *step) for step in commands(folder / name, member, bool(tested.any()), args)]
    with tqdm(work, unit="script", disable=None) as bar:
        for name, member, product, command in bar:
            script = Path(command[1]).stem
            bar.set_description(f"{name}, member {member}, {script}")
            if product.exists():
                continue
            if not sys.stderr.isatty():
                print(f"{name}, member {member}: {script}", flush=True)
            log = folder / name / f"member_{member}" / f"{script}.log"
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("a") as file:
                status = subprocess.run(
                    command, stdout=file, stderr=file, check=False, env={**os.environ, "PYTHONUNBUFFERED": "1"}
                ).returncode
            if status:
                lines = log.read_text(errors="replace").strip().splitlines()[-LAST_LINES:]
                what = f"{script} failed in {name}, member {member} (status {status}); the end of {log}:"
                raise InputError("\n  ".join([what, *lines]))


def member_checkpoints(args: Namespace) -> list[tuple[Path, Path]]:
    """Return where the cascades that were trained on everybody lie."""
    members = (args.output_dir / ALL / f"member_{number}" for number in range(1, args.members + 1))
    return [(member / "first_stage" / "best.pt", member / "second_stage" / "best.pt") for member in members]


def pool(folder: Path, subjects: Sequence[Subject], fold: np.ndarray, args: Namespace) -> tuple[Predictions, Report]:
    """Average the members' estimates of every subject by the networks that never saw the person.

    Parameters
    ----------
    folder : Path
    subjects : sequence of N Subject
    fold : (N,) int array, from 1
    args : Namespace
        Of `utils.options.prediction.cross_validation_parser`.

    Returns
    -------
    predictions : dict of str to (N,) float array
        ``brain_age``, ``chronological_age``, the bounds of the interval,
        ``interval_low`` and ``interval_high``, whose radius comes from the
        other folds, and, of both stages, `COLUMNS`.
    report : callable
        As `utils.evaluation.reports.write_report` takes it: tells the share of
        intervals that hold, and, of both stages, the standard deviation of
        the residual within equal discretized ages, its mean over the members.
    """
    index = {subject.subject_id: number for number, subject in enumerate(subjects)}
    names = ["brain_age", *(COLUMNS if args.stages == 2 else ())]
    table = {name: np.full((args.members, len(subjects)), np.nan, np.float32) for name in names}
    for number in range(1, args.folds + 1):
        for member in range(args.members):
            path = folder / f"fold_{number}" / f"member_{member + 1}" / TESTS[args.stages] / "predictions.csv"
            with path.open(newline="", encoding="utf-8") as file:
                for row in csv.DictReader(file):
                    for name in names:
                        table[name][member, index[row["subject_id"]]] = float(row[name])
            missing = ~np.isfinite(table["brain_age"][member, fold == number])
            if missing.any():
                raise InputError(f"{path}: lacks {missing.sum()} subjects of the fold; delete it and run this again")
    predictions: dict[str, Any] = {name: values.mean(0) for name, values in table.items()}
    predictions["chronological_age"] = np.array([subject.chronological_age for subject in subjects], np.float32)
    error = np.abs(predictions["brain_age"] - predictions["chronological_age"])
    radius = np.array([interval_radius(error[fold != number], INTERVAL_COVERAGE) for number in fold])
    predictions["interval_low"] = predictions["brain_age"] - radius
    predictions["interval_high"] = predictions["brain_age"] + radius
    scalars = {"coverage": float((error <= radius).mean())}
    if args.stages == 2:
        pairs = zip(table["residual_age"], table["discretized_age"], strict=True)
        scalars["residual_sd"] = float(np.mean([residual_sd_within_bins(*pair) for pair in pairs]))
    return predictions, lambda _: (scalars, "")
