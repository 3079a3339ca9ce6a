"""Cross-validate both stages by running the training and test scripts fold by fold."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from utils.common.checkpoints import load_checkpoint
from utils.common.errors import InputError
from utils.common.files import PROJECT, replacing, sha256_of, write_json
from utils.data.cohort import split_into_folds
from utils.data.dataset import ScanDataset, make_loader, to_device
from utils.data.scans import ScanStore
from utils.data.subjects import Subject
from utils.evaluation.metrics import INTERVAL_COVERAGE, Predictions, interval_radius, residual_sd_within_bins
from utils.prediction.model_card import make_card, make_manifest
from utils.prediction.weights import STAGES, save_weights
from utils.training.stages import SecondStage
from utils.training.state import FREE_ON_RESUME

Report = Callable[[Predictions], tuple[dict[str, float], str]]

TABLE = "folds.csv"
ALL = "all"  # the fold without test subjects
FEWEST_FOR_WEIGHTS = 10  # subjects; fewer give no 90 % interval
LAST_LINES = 12  # of a log, shown when its script failed
TESTS = {1: "first_stage_test", 2: "test"}  # folders of a member's predictions
# Run a bash script with a PYTHON that prints its arguments instead of starting anything.
SHOW_ARGUMENTS = 'show() { printf "%s\\0" "$@"; }; PYTHON=show; source "$0" "$@"'


@dataclass(frozen=True)
class CrossValidation:
    """The settings of a cross-validation; each is explained by the flag of the same name.

    See Also
    --------
    utils.options.prediction : names, meanings and defaults.
    """

    output_dir: Path
    label_table: Path
    folds: int
    members: int
    stages: int
    seed: int
    weights_dir: Path | None
    data_notice: str
    remark: str
    num_workers: int
    cache_folder: Path | None

    def member_folder(self, fold: int | str, member: int) -> Path:
        """Return the folder of a fold's member; both are counted from 1, and `fold` may be `ALL`."""
        return self.output_dir / (f"fold_{fold}" if isinstance(fold, int) else fold) / f"member_{member}"


def write_folds(folder: Path, subjects: Sequence[Subject], folds: int, seed: int) -> np.ndarray:
    """Assign each subject to the fold in which it is tested, once for all runs in a folder.

    Parameters
    ----------
    folder : Path
        Gets ``folds.csv``; an existing one must hold the same assignment.
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


def training_arguments(stage: int, settings: CrossValidation) -> list[str]:
    """Return the arguments that the bash script of a stage gives to its training script.

    They come from the defaults, the recipe and the environment, followed by
    what cross-validation sets itself.

    Raises
    ------
    InputError
        If the bash script fails, for example because there is no such recipe.
    """
    _, script, flags = list(_steps(1, 1, False, settings, "auto"))[stage - 1]
    done = subprocess.run(
        ["bash", "-c", SHOW_ARGUMENTS, str(PROJECT / script), *flags],
        env=_environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise InputError(done.stderr.strip().removeprefix("error: "))
    words = done.stdout.split("\0")[:-1]
    return words[words.index(str(PROJECT / f"train_{STAGES[stage - 1]}.py")) + 1 :]


def check_settings(settings: CrossValidation, trainings: Sequence[Mapping[str, Any]]) -> None:
    """Write down the flags of the trainings, or compare them with those that the folder was begun with.

    Parameters
    ----------
    settings : CrossValidation
    trainings : sequence of mapping
        The flags of the training of each stage, by name.

    Raises
    ------
    InputError
        If they differ.
    """
    recorded: dict[str, Any] = {"SHA-256 of the label table": sha256_of(settings.label_table)}
    for stage, flags in enumerate(trainings, 1):
        chosen = {name: value for name, value in flags.items() if name not in FREE_ON_RESUME}
        recorded |= {f"--{name} of the {STAGES[stage - 1].replace('_', ' ')}": value for name, value in chosen.items()}
    recorded = json.loads(json.dumps(recorded))
    path = settings.output_dir / "settings.json"
    if not path.exists():
        write_json(path, recorded)
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    changed = [
        f"{name} was {before.get(name)}, is {value}" for name, value in recorded.items() if before.get(name) != value
    ]
    if changed:
        raise InputError(f"{path}: {'; '.join(changed)}; set another OUTPUT_DIR (--output_dir)")


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


def _environment() -> dict[str, str]:
    """Return the environment of the scripts, without FOLDS, which means another number there."""
    kept = {name: value for name, value in os.environ.items() if name != "FOLDS"}
    return {**kept, "PYTHON": sys.executable, "PYTHONUNBUFFERED": "1"}


def _steps(
    fold: int | str, member: int, tested: bool, settings: CrossValidation, precision: str
) -> Iterator[tuple[Path, str, list[str]]]:
    """Yield what one member of a fold runs: the file that shows that it has finished, the script, its flags."""
    own = settings.member_folder(fold, member)
    first, second = own / "first_stage", own / "second_stage"
    machine = ["--label_table", settings.label_table, "--num_workers", settings.num_workers,
               "--cache_folder", settings.cache_folder or ""]  # fmt: skip
    train = [*machine, "--train_folder", own.parent / "train", "--valid_folder", "",
             "--seed", settings.seed + member - 1, "--resume"]  # fmt: skip
    test = [*machine, "--test_folder", own.parent / "test", "--output_dir", own / TESTS[settings.stages],
            "--precision", precision, "--checkpoint", own / STAGES[settings.stages - 1] / "best.pt"]  # fmt: skip
    of_first = ["--first_stage_checkpoint", first / "best.pt"]
    flags = [*train, "--test_folder", "", "--output_dir", first]
    steps = [(first / "train_discretized_age.npy", "bash_train_first_stage.sh", flags)]
    if settings.stages == 2:
        flags = [*train, *of_first, "--discretized_age_folder", first, "--output_dir", second]
        steps.append((second / "best.pt", "bash_train_second_stage.sh", flags))
        test += of_first
    if tested:
        product = own / TESTS[settings.stages] / "predictions.csv"
        steps.append((product, f"bash_test_{STAGES[settings.stages - 1]}.sh", test))
    for product, script, values in steps:
        yield product, script, [str(value) for value in values]


def run_all(subjects: Sequence[Subject], fold: np.ndarray, settings: CrossValidation, precision: str) -> None:
    """Train and test every member of every fold that is not finished yet.

    Parameters
    ----------
    subjects : sequence of N Subject
    fold : (N,) int array, from 1
    settings : CrossValidation
    precision : str
        Of the tests.

    Raises
    ------
    InputError
        If a script fails, with the end of its log.
    """
    tested: dict[int | str, np.ndarray] = {number: fold == number for number in range(1, settings.folds + 1)}
    if settings.weights_dir:
        tested[ALL] = np.zeros(len(subjects), bool)
    work = []
    for number, chosen in tested.items():
        folder = settings.member_folder(number, 1).parent
        link_scans(folder / "train", [s for s, own in zip(subjects, chosen, strict=True) if not own])
        if chosen.any():
            link_scans(folder / "test", [s for s, own in zip(subjects, chosen, strict=True) if own])
        for member in range(1, settings.members + 1):
            steps = _steps(number, member, bool(chosen.any()), settings, precision)
            work += [(folder / f"member_{member}", *step) for step in steps]
    with tqdm(work, unit="script", disable=None) as bar:
        for folder, product, script, flags in bar:
            if not product.exists():
                name = f"{folder.parent.name}, {folder.name}: {script}"
                bar.set_description(name)
                if not sys.stderr.isatty():
                    print(name, flush=True)
                _run(folder, script, flags)


def _run(folder: Path, script: str, flags: Sequence[str]) -> None:
    """Run a bash script, its output going to a log in the folder."""
    log = folder / f"{Path(script).stem.removeprefix('bash_')}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        command = ["bash", str(PROJECT / script), *flags]
        status = subprocess.run(command, stdout=file, stderr=file, env=_environment(), check=False).returncode
    if status:
        lines = log.read_text(errors="replace").strip().splitlines()[-LAST_LINES:]
        raise InputError("\n  ".join([f"{script} failed with status {status}; the end of {log}:", *lines]))


def pool(subjects: Sequence[Subject], fold: np.ndarray, settings: CrossValidation) -> tuple[Predictions, Report]:
    """Average the members' estimates for each subject, made by networks that never saw the person.

    Parameters
    ----------
    subjects : sequence of N Subject
    fold : (N,) int array, from 1
    settings : CrossValidation

    Returns
    -------
    predictions : dict of str to (N,) float array, years
        ``brain_age``, ``chronological_age``, the bounds of the interval,
        ``interval_low`` and ``interval_high``, whose radius comes from the
        other folds, and, with two stages, those of `SecondStage.columns`.
    report : callable
        For `utils.evaluation.reports.write_report`: gives the share of
        intervals that hold the age and, with two stages, the standard
        deviation of the residual within equal discretized ages, averaged
        over the members.
    """
    index = {subject.subject_id: number for number, subject in enumerate(subjects)}
    names = ["brain_age", *(SecondStage.columns if settings.stages == 2 else ())]
    table = {name: np.full((settings.members, len(subjects)), np.nan, np.float32) for name in names}
    for number in range(1, settings.folds + 1):
        for member in range(settings.members):
            path = settings.member_folder(number, member + 1) / TESTS[settings.stages] / "predictions.csv"
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
    if settings.stages == 2:
        pairs = zip(table["residual_age"], table["discretized_age"], strict=True)
        scalars["residual_sd"] = float(np.mean([residual_sd_within_bins(*pair) for pair in pairs]))
    return predictions, lambda _: (scalars, "")


def write_weights(
    folder: Path,
    subjects: Sequence[Subject],
    predictions: Predictions,
    metrics: Mapping[str, Any],
    settings: CrossValidation,
) -> None:
    """Write the cascades that were trained on all subjects as weights with a model card.

    Parameters
    ----------
    folder : Path
    subjects : sequence of N Subject
    predictions : dict of str to (N,) float array
        Of `pool`.
    metrics : mapping
        Of `utils.evaluation.reports.write_report`.
    settings : CrossValidation
    """  # fmt: skip
    members = (settings.member_folder(ALL, number) for number in range(1, settings.members + 1))
    checkpoints = [[load_checkpoint(own / stage / "best.pt") for stage in STAGES] for own in members]
    first = checkpoints[0][0]
    manifest = make_manifest(subjects, predictions, metrics, settings.data_notice, settings.remark)
    card = make_card(manifest, subjects, first, settings.members, settings.folds)
    scans = ScanStore(first["voxel_size"], first["normalization"], None, settings.num_workers)
    cpu = torch.device("cpu")
    loader = make_loader(ScanDataset(subjects, scans), [[i] for i in range(len(subjects))], 0, cpu)
    mean_volume = sum(to_device(batch, cpu)["volume"][0, 0] for batch in loader) / len(subjects)
    save_weights(folder, checkpoints, manifest, card, mean_volume)
