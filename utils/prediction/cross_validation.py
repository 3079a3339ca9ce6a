"""Cross-validate both stages by running the training and test scripts fold by fold."""

import csv
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from utils.common.checkpoints import load_checkpoint
from utils.common.choices import Shard
from utils.common.errors import InputError, list_some
from utils.common.files import replacing
from utils.data.cohort import split_into_folds
from utils.data.dataset import ScanDataset
from utils.data.scans import ScanStore
from utils.data.subjects import Subject, person_of
from utils.evaluation.metrics import (
    INTERVAL_COVERAGE,
    Predictions,
    interval_radius,
    residual_sd_within_bins,
)
from utils.prediction.likeness import describe_training
from utils.prediction.model_card import make_card, make_manifest
from utils.prediction.script_runs import Step, arguments_of_training, link_scans, run_chains, run_script, unfinished
from utils.prediction.site_figures import Folds, describe_sites, seen_ages
from utils.prediction.weights import STAGES, save_weights
from utils.training.stages import FirstStage, SecondStage

Report = Callable[[Predictions], tuple[dict[str, float], str]]

TABLE = "folds.csv"
ALL = "all"  # the fold without test subjects
SITE_PREFIX = "site_"  # of the folds that are sites
FEWEST_TOLD = 5  # subjects of a fold; the ages of fewer are alike by chance
FEWEST_FOR_WEIGHTS = 10  # subjects; fewer give no 90 % interval
TESTS = {1: "first_stage_test", 2: "test"}  # folders of a member's predictions


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
    hold_out: str
    site_column: str
    members: int
    stages: int
    seed: int
    weights_dir: Path | None
    data_notice: str
    remark: str
    shard: Shard
    jobs: int
    num_workers: int
    cache_folder: Path | None

    def member_folder(self, fold: str, member: int) -> Path:
        """Return the folder of a fold's member, which is counted from 1; `fold` may be `ALL`."""
        return self.output_dir / fold / f"member_{member}"


def assign_folds(subjects: Sequence[Subject], settings: CrossValidation) -> Folds:
    """Assign each subject to the fold in which it is tested, once for all runs in a folder.

    Parameters
    ----------
    subjects : sequence of N Subject
    settings : CrossValidation
        Its folder gets ``folds.csv``; an existing one must hold the same assignment.

    Returns
    -------
    dict of {"people", "sites"} to (N,) str array
        What is held out, and each subject's fold, such as ``fold_1`` or ``site_Oslo``.

    Raises
    ------
    InputError
        If the folder holds other folds, there are fewer than two sites, or
        a person was scanned at several.
    """
    folds: Folds = {}
    if settings.hold_out in ("people", "both"):
        folds["people"] = np.full(len(subjects), "", object)
        for number, (_, part) in enumerate(split_into_folds(subjects, settings.folds, settings.seed), 1):
            folds["people"][part] = f"fold_{number}"
    if settings.hold_out in ("sites", "both"):
        folds["sites"] = np.array([f"{SITE_PREFIX}{re.sub('[^A-Za-z0-9.-]', '_', s.site)}" for s in subjects], object)
        _check_sites(subjects, folds["sites"])
    empty = [""] * len(subjects)
    rows = [
        [subject.subject_id, f"{subject.chronological_age:.4f}", *row, subject.path.name, subject.person]
        for subject, *row in zip(subjects, folds.get("people", empty), folds.get("sites", empty), strict=True)
    ]
    path = settings.output_dir / TABLE
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            if list(csv.reader(file))[1:] != rows:
                raise InputError(f"{path}: holds other subjects or folds; set another OUTPUT_DIR (--output_dir)")
        return folds
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["subject_id", "age", "fold", "site", "scan", "person"], *rows])
    return folds


def _check_sites(subjects: Sequence[Subject], sites: np.ndarray) -> None:
    """Refuse fewer than two sites, sites whose folders would have one name, and persons who were at several."""
    names: dict[str, str] = {}
    persons: dict[str, str] = {}
    problems = []
    for subject, site in zip(subjects, sites, strict=True):
        person = subject.person
        if names.setdefault(site, subject.site) != subject.site:
            problems.append(f"sites {names[site]} and {subject.site} differ only in special characters; rename one")
        if persons.setdefault(person, site) != site:
            problems.append(f"{subject.subject_id}: {person} is at several sites, so neither can be held out")
    if len(names) < 2:
        problems.append(f"--hold_out: there is only the site {subjects[0].site}; use --hold_out people")
    if problems:
        raise InputError(sorted(set(problems)))


def training_arguments(stage: int, settings: CrossValidation) -> list[str]:
    """Return the arguments of `arguments_of_training` with what cross-validation sets itself."""
    return arguments_of_training(stage, _flags("fold_1", 1, False, settings)[stage - 1][2])


def _flags(fold: str, member: int, tested: bool, settings: CrossValidation) -> list[tuple[Path, str, list[str]]]:
    """Return what one member of a fold runs: the file that shows that it has finished, the script, its flags."""
    own = settings.member_folder(fold, member)
    first, second = own / "first_stage", own / "second_stage"
    machine = ["--label_table", settings.label_table, "--num_workers", settings.num_workers,
               "--cache_folder", settings.cache_folder or ""]  # fmt: skip
    train = [*machine, "--train_folder", own.parent / "train", "--valid_folder", "",
             "--seed", settings.seed + member - 1, "--resume"]  # fmt: skip
    test = [*machine, "--test_folder", own.parent / "test", "--output_dir", own / TESTS[settings.stages],
            "--precision", "float32", "--overwrite", "true",
            "--checkpoint", own / STAGES[settings.stages - 1] / "best.pt"]  # fmt: skip
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
    return [(product, script, [str(value) for value in values]) for product, script, values in steps]


def _steps(fold: str, member: int, tested: bool, settings: CrossValidation) -> Iterator[Step]:
    """Yield the steps of one member of a fold."""
    own = settings.member_folder(fold, member)
    for product, script, flags in _flags(fold, member, tested, settings):
        log = own / f"{Path(script).stem.removeprefix('bash_')}.log"
        run = partial(run_script, log, script, flags, jobs=settings.jobs)
        yield Step(f"{fold}, {own.name}: {script}", product, run)


def run_all(subjects: Sequence[Subject], folds: Folds, settings: CrossValidation) -> list[str]:
    """Train and test this shard's members of the folds that are not finished yet, some side by side.

    Parameters
    ----------
    subjects : sequence of N Subject
    folds : dict of (N,) str arrays
        Of `assign_folds`.
    settings : CrossValidation

    Returns
    -------
    list of str
        What is left to other shards.

    Raises
    ------
    InputError
        If a script fails, with the end of its log.
    """
    tested = {name: fold == name for fold in folds.values() for name in sorted(set(fold))}
    if settings.weights_dir:
        tested[ALL] = np.zeros(len(subjects), bool)
    chains = []
    for name, chosen in tested.items():
        folder = settings.member_folder(name, 1).parent
        link_scans(folder / "train", [s for s, own in zip(subjects, chosen, strict=True) if not own])
        if chosen.any():
            link_scans(folder / "test", [s for s, own in zip(subjects, chosen, strict=True) if own])
        members = range(1, settings.members + 1)
        chains += [list(_steps(name, member, bool(chosen.any()), settings)) for member in members]
    run_chains(settings.shard.of(chains), settings.jobs)
    return unfinished(chains)


def pool(subjects: Sequence[Subject], fold: np.ndarray, settings: CrossValidation) -> tuple[Predictions, Report]:
    """Average the members' estimates for each subject, made by networks that never saw the person.

    Parameters
    ----------
    subjects : sequence of N Subject
    fold : (N,) str array
        One of those of `assign_folds`.
    settings : CrossValidation

    Returns
    -------
    predictions : dict of str to (N,) float array, years
        Besides ``weights_sha256``, (N,) str array of the members' weights:
        ``brain_age``, ``chronological_age``, the bounds of the interval,
        ``interval_low`` and ``interval_high``, whose radius comes from the
        other folds (of sites, from people whose ages their networks had
        seen), and, with two stages, those of `SecondStage.columns`.
    report : callable
        For `utils.evaluation.reports.write_report`: gives the share of
        intervals that hold the age and, with two stages, the standard
        deviation of the residual within equal discretized ages, averaged
        over the members.
    """
    index = {subject.subject_id: number for number, subject in enumerate(subjects)}
    names = ["brain_age", *(SecondStage.columns if settings.stages == 2 else ())]
    table = {name: np.full((settings.members, len(subjects)), np.nan, np.float32) for name in names}
    weights: list[list[str]] = [[] for _ in subjects]
    for name in sorted(set(fold)):
        for member in range(settings.members):
            path = settings.member_folder(name, member + 1) / TESTS[settings.stages] / "predictions.csv"
            with path.open(newline="", encoding="utf-8") as file:
                for row in csv.DictReader(file):
                    weights[index[row["subject_id"]]].append(row.get("weights_sha256", ""))  # "" before version 0.5
                    for column in names:
                        table[column][member, index[row["subject_id"]]] = float(row[column])
            missing = ~np.isfinite(table["brain_age"][member, fold == name])
            if missing.any():
                raise InputError(f"{path}: lacks {missing.sum()} subjects of the fold; delete it and run this again")
    predictions: dict[str, Any] = {name: values.mean(0) for name, values in table.items()}
    predictions["weights_sha256"] = np.array([" ".join(filter(None, own)) for own in weights])
    predictions["chronological_age"] = np.array([subject.chronological_age for subject in subjects], np.float32)
    error = np.abs(predictions["brain_age"] - predictions["chronological_age"])
    sites_held_out = str(fold[0]).startswith(SITE_PREFIX)
    seen = seen_ages(predictions["chronological_age"], fold) if sites_held_out else np.full(len(subjects), True)
    radii = {name: interval_radius(error[(fold != name) & seen], INTERVAL_COVERAGE) for name in set(fold)}
    radius = np.array([radii[name] for name in fold])
    predictions["interval_low"] = np.maximum(predictions["brain_age"] - radius, 0)
    predictions["interval_high"] = predictions["brain_age"] + radius
    scalars = {"coverage": float((error <= radius).mean())}
    if settings.stages == 2:
        pairs = zip(table["residual_age"], table["discretized_age"], strict=True)
        scalars["residual_sd"] = float(np.mean([residual_sd_within_bins(*pair) for pair in pairs]))
    warning = _warn_of_stuck(table["brain_age"], predictions["chronological_age"], fold)
    return predictions, lambda _: (scalars, warning)


def _warn_of_stuck(brain_ages: np.ndarray, ages: np.ndarray, fold: np.ndarray) -> str:
    """Name the networks that give everybody in their fold nearly the same age; (members, N), (N,) and (N,) arrays."""
    stuck = [
        f"{name}, member {member}"
        for name in sorted(set(fold))
        for member, own in enumerate(brain_ages, 1)
        if (fold == name).sum() >= FEWEST_TOLD
        and FirstStage().report({"brain_age": own[fold == name], "chronological_age": ages[fold == name]})[1]
    ]
    return (
        f"STUCK: {len(stuck)} of {len(brain_ages) * len(set(fold))} networks give everybody nearly the same age "
        f"({list_some(stuck)}); train longer or raise LEARNING_RATE (--learning_rate)"
        if stuck
        else ""
    )


def write_weights(
    folder: Path,
    subjects: Sequence[Subject],
    predictions: Mapping[str, Predictions],
    metrics: Mapping[str, Mapping[str, Any]],
    settings: CrossValidation,
    folds: Folds,
) -> None:
    """Write the cascades that were trained on all subjects as weights with a model card.

    Parameters
    ----------
    folder : Path
    subjects : sequence of N Subject
    predictions, metrics : mapping of {"people", "sites"}
        Of `pool`, and of `utils.evaluation.reports.write_report`.
    settings : CrossValidation
    folds : dict of (N,) str arrays
        Of `assign_folds`.
    """
    members = (settings.member_folder(ALL, number) for number in range(1, settings.members + 1))
    checkpoints = [[load_checkpoint(own / stage / "best.pt") for stage in STAGES] for own in members]
    first = checkpoints[0][0]
    scans = ScanStore(first["voxel_size"], first["normalization"], settings.cache_folder, settings.num_workers)
    scans.prepare([subject.path for subject in subjects])
    typical, limit = describe_training(ScanDataset(subjects, scans), settings.num_workers)
    manifest = make_manifest(subjects, predictions["people"], metrics["people"], settings.data_notice, settings.remark)
    manifest["distance_limit"] = round(limit, 4)
    initial = {person_of(name) for own in checkpoints[0] for name in own.get("initial_subjects", ())}
    manifest["training_persons"] = sorted({*manifest["training_persons"], *initial})
    rows = describe_sites(subjects, predictions, folds) if settings.site_column else []
    if "sites" in folds:
        own = predictions["sites"]
        gaps, seen = own["brain_age"] - own["chronological_age"], seen_ages(own["chronological_age"], folds["sites"])
        sites = np.array([subject.site for subject in subjects])
        if np.isfinite(interval_radius(np.abs(gaps[seen]), INTERVAL_COVERAGE)):
            manifest["unseen_site_gaps"] = {
                site: np.round(gaps[(sites == site) & seen], 3).tolist() for site in sorted(set(sites))
            }
            ages = own["chronological_age"][seen]
            manifest["unseen_site_ages"] = [float(ages.min()), float(ages.max())]
        else:
            print("WARNING: too few people on held-out sites, so the weights have no interval for unseen scanners")
    card = make_card(manifest, subjects, first, settings.members, settings.folds, rows)
    save_weights(folder, checkpoints, manifest, card, typical)
