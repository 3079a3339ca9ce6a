"""Match scans to the rows of a label table, and report every problem before training."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from model.conventions import UNKNOWN_SEX
from utils.common.errors import InputError, list_some, shortened
from utils.data.names import scan_name, unusable_name
from utils.data.scan_folders import file_name_of, list_prepared, why_no_scans
from utils.data.scans import ScanStore
from utils.data.subjects import UNKNOWN_AGE, Subject, named_persons, person_of, suspected_visits
from utils.data.tables import LabelTable, given_sex, read_label_table

LEAST_TRAINING_ERROR = 0.5  # of the validation MAE


def load_cohort(
    folders: Mapping[str, Path],
    label_table: Path | None,
    scans: ScanStore | None,
    *,
    use_sex: bool = True,
    sex_of_all: str | None = None,
    ages_required: bool = True,
    site_column: str = "",
) -> dict[str, list[Subject]]:
    """Find the scans of every split, match and check them all.

    Parameters
    ----------
    folders : mapping of split name to folder
    label_table : Path or None
        None leaves ages unknown.
    scans : ScanStore or None
        Reads, checks and caches the scans; None leaves them unchecked.
    use_sex : bool
        Whether the sex of every subject must be known.
    sex_of_all : str or None
        Sex of all subjects where there is no table, such as ``F``.
    ages_required : bool
        Whether a row without an age is a problem.
    site_column : str
        Column of the table that tells the site; empty: none.

    Returns
    -------
    dict of split name to list of Subject, sorted by subject id

    Raises
    ------
    InputError
        With every problem of the table, the folders and the scans.
    """
    table = read_label_table(label_table, site_column) if label_table else None
    notes: list[str] = []
    if table and table.complaint:
        if ages_required:
            raise InputError(table.complaint)
        notes.append(f"WARNING: {table.complaint}; without it there are no metrics")
    if table and table.sex_note and use_sex:
        notes.append(f"note: {table.path}: {table.sex_note}")
    problems: list[str] = []
    if table and table.sex_complaint and use_sex and not sex_of_all:
        problems.append(f"{table.sex_complaint}, or use a model without sex (--use_sex false)")
        use_sex = False
    unknown_ages: list[str] = []
    cohort: dict[str, list[Subject]] = {}
    for split, folder in folders.items():
        paths = _find_scans(folder, split, problems)
        cohort[split] = _match(paths, table, use_sex, sex_of_all, problems, problems if ages_required else unknown_ages)
    named = named_persons(subject for subjects in cohort.values() for subject in subjects)
    for split, subjects in cohort.items():
        cohort[split] = [replace(one, person=named.get(one.person, one.person)) for one in subjects]
    _check_overlap(cohort, problems)
    if scans:
        problems += scans.prepare([subject.path for subjects in cohort.values() for subject in subjects])
        copies = _find_copies(cohort, scans, problems)
        if copies:
            notes.append(f"WARNING: scans hold the same voxels, so one has a wrong name: {list_some(copies)}")
    if problems:
        raise InputError(problems)
    if unknown_ages and table and not table.complaint:
        notes.append("\n  ".join([f"WARNING: {len(unknown_ages)} scans have no metrics:", *shortened(unknown_ages)]))
    visits = suspected_visits(subject.person for subjects in cohort.values() for subject in subjects)
    if visits:
        notes.append(f"WARNING: {visits}")
    print(*notes, sep="\n", end="\n" * bool(notes))
    return cohort


def _find_scans(folder: Path, split: str, problems: list[str]) -> list[Path]:
    """List the NIfTI files of a folder."""
    name = f"{split.upper()}_FOLDER (--{split}_folder)"
    if not folder.is_dir():
        problems.append(f"{folder}: no such folder; set {name} to a folder of .nii or .nii.gz files")
        return []
    try:
        paths = list_prepared(folder)
    except InputError as error:
        problems += error.problems
        return []
    if not paths:
        problems.append(why_no_scans(folder, f"holds no .nii or .nii.gz file; set {name} to a folder that does"))
    return paths


def _match(
    paths: list[Path],
    table: LabelTable | None,
    use_sex: bool,
    sex_of_all: str | None,
    problems: list[str],
    unknown_ages: list[str],
) -> list[Subject]:
    """Give each scan its row."""
    subjects: dict[str, Subject] = {}
    files: dict[str, str] = {}  # by row, and by subject id
    for path in paths:
        name = file_name_of(path)
        row = table.find(name) if table else None
        subject = Subject(scan_name(name), path, UNKNOWN_AGE, given_sex(sex_of_all))
        wrong = unusable_name(subject.subject_id)
        if wrong:
            problems.append(f"{path.parent}: {wrong}")
            continue
        if table and not row:
            problems.append(f"{path}: {table.why_not(name)}")
            continue
        if row:
            sex = subject.sex if row.sex == UNKNOWN_SEX else row.sex
            subject = Subject(row.subject_id, path, row.age.years, sex, site=row.site, person=row.person)
        keys = (row.where if row else "", subject.subject_id)
        other = next((files[key] for key in keys if key in files), "")
        files |= dict.fromkeys(filter(None, keys), name)
        if other:
            problems.append(
                f"{path}: a second scan of {subject.subject_id} beside {other}; keep one, or give each its own row"
            )
            continue
        if row:
            problems += row.problems
            if row.age_complaint:
                (unknown_ages if row.age.unknown else problems).append(row.age_complaint)
        if use_sex and subject.sex == UNKNOWN_SEX:
            what = (
                row.sex_complaint if row else f"{path}: the sex of {subject.subject_id} is not known; give SEX (--sex)"
            )
            problems.append(f"{what}, or use a model without sex (--use_sex false)")
        subjects[subject.subject_id] = subject
    return [subjects[key] for key in sorted(subjects)]


def _check_overlap(cohort: Mapping[str, list[Subject]], problems: list[str]) -> None:
    """Find persons who are in more than one split."""
    seen: dict[str, tuple[str, Path]] = {}
    for split, subjects in cohort.items():
        for subject in subjects:
            other, path = seen.setdefault(subject.person, (split, subject.path))
            if other != split:
                problems.append(
                    f"{subject.path}: {subject.person} is in the {split} split and in the {other} split ({path}); "
                    "keep a person in one split"
                )


def _find_copies(cohort: Mapping[str, list[Subject]], scans: ScanStore, problems: list[str]) -> list[str]:
    """Return the pairs of scans of a split that hold the same voxels; those of two splits are problems."""
    seen: dict[int, tuple[str, Path]] = {}
    copies = []
    for split, subjects in cohort.items():
        for path in (subject.path for subject in subjects):
            checksum = scans.checksum(path)
            if checksum is None:
                continue
            other_split, other = seen.setdefault(checksum, (split, path))
            if other == path or not scans.are_equal(path, other):
                continue
            if split == other_split:
                copies.append(f"{path} and {other}")
            else:
                problems.append(
                    f"{path}: holds the same voxels as {other} of the {other_split} split; remove the one that has the "
                    "wrong name"
                )
    return copies


def add_first_stage_ages(
    subjects: Sequence[Subject],
    brain_age: np.ndarray,
    discretized_age: np.ndarray,
    out_of_fold: np.ndarray | None = None,
) -> list[Subject]:
    """Return the subjects with the first stage's ages, (N,) float arrays in years."""
    unseen = np.zeros(len(subjects), bool) if out_of_fold is None else out_of_fold
    return [
        replace(subject, first_stage_age=float(age), discretized_age=float(discretized), out_of_fold=bool(own))
        for subject, age, discretized, own in zip(subjects, brain_age, discretized_age, unseen, strict=True)
    ]


def are_known(subjects: Sequence[Subject], training_subjects: Sequence[str]) -> np.ndarray:
    """Tell which subjects are persons on whom a network was trained, by subject ids or persons, (N,) bool array."""
    known = {*training_subjects, *map(person_of, training_subjects)}
    return np.array([not known.isdisjoint(subject.names) for subject in subjects], bool)


def warn_of_overfitting(train_subjects: Sequence[Subject], valid_subjects: Sequence[Subject]) -> None:
    """Warn if the first stage errs much less on training subjects than on validation subjects."""
    train, valid = (
        float(np.mean([abs(subject.first_stage_age - subject.chronological_age) for subject in subjects]))
        for subjects in (train_subjects, valid_subjects)
    )
    if train < LEAST_TRAINING_ERROR * valid:
        print(
            f"WARNING: the first stage has overfitted: its MAE is {train:.2f} years on the training subjects and "
            f"{valid:.2f} on the validation subjects, which leaves the second stage little to learn. Train the first "
            "stage with FOLDS=5 for out-of-fold ages, or the second with AGE_JITTER above 0."
        )


def split_into_folds(subjects: Sequence[Subject], folds: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Divide subjects into folds with similar ages, all scans of a person in one fold.

    Parameters
    ----------
    subjects : sequence of N Subject
    folds : int
        0 gives none.
    seed : int

    Yields
    ------
    rest, part : int arrays
        Indices of the subjects in the other folds and in this one.

    Raises
    ------
    InputError
        If there are fewer persons than folds.
    """
    if not folds:
        return
    from sklearn.model_selection import StratifiedGroupKFold  # takes a second to import

    persons = [subject.person for subject in subjects]
    if len(set(persons)) < folds:
        raise InputError(f"--folds: {folds} folds of {len(set(persons))} training subjects; lower FOLDS (--folds)")
    ages = np.array([subject.chronological_age for subject in subjects])
    rank = ages.argsort(kind="stable").argsort(kind="stable")
    bins = rank * max(1, len(ages) // (2 * folds)) // len(ages)
    yield from StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(ages, bins, persons)
