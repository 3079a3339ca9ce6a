"""Make a data set for training: find labels, split persons, link scans."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd

from utils.common.errors import InputError, list_some
from utils.common.files import check_writable
from utils.data.names import scan_name
from utils.data.scan_folders import FSL_FOLDER, FSL_PRODUCT, file_name_of, list_prepared, why_no_scans
from utils.data.subjects import SEX_NAMES
from utils.preparation.labelling import LabelledScan
from utils.preparation.records import DOUBTFUL, FAIL, QC_FOLDER, read_record

SPLITS = ("train", "valid", "test")


def find_prepared_scans(folder: Path, include_doubtful: bool) -> dict[str, Path]:
    """List preprocessed scans by subject id, from ``preprocess.py`` or FSL's ``fsl_anat``.

    Parameters
    ----------
    folder : Path
    include_doubtful : bool
        Whether to take scans whose verdict is doubtful.

    Raises
    ------
    InputError
        If there is no scan, or the scans were not all prepared in the same way.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; set PREPROCESSED (--preprocessed) to preprocessed scans")
    scans: dict[str, Path] = {}
    problems = []
    for path in list_prepared(folder):
        name = scan_name(file_name_of(path))
        if scans.setdefault(name, path) != path:
            problems.append(f"{path}: a second scan of {name} beside {scans[name].name}; keep one")
    if problems:
        raise InputError(problems)
    fsl = fsl_products(folder)
    if scans and fsl:
        raise InputError(f"{folder}: holds both scans and fsl_anat's folders; give a folder of only one kind")
    if not scans and not fsl:
        raise InputError(
            why_no_scans(
                folder,
                "holds no .nii or .nii.gz file, no sub-*/[ses-*/]anat/*_T1w.nii.gz of a BIDS derivative, and no "
                f"*/{FSL_PRODUCT}",
            )
        )
    if not (folder / QC_FOLDER).is_dir():
        return scans or fsl
    return _without_bad(scans, folder, include_doubtful)


def fsl_products(folder: Path) -> dict[str, Path]:
    """List the brains that FSL's ``fsl_anat`` wrote into folders of this folder, by subject id."""
    found = {scan_name(path.parent.name): path for path in sorted(folder.glob(f"*/{FSL_PRODUCT}"))}
    unfinished = [path.name for path in sorted(folder.glob(f"*{FSL_FOLDER}")) if not (path / FSL_PRODUCT).is_file()]
    if unfinished:
        print(f"WARNING: {len(unfinished)} folders of fsl_anat hold no {FSL_PRODUCT}: {list_some(unfinished)}")
    return found


def _without_bad(scans: dict[str, Path], folder: Path, include_doubtful: bool) -> dict[str, Path]:
    """Leave out scans with a bad verdict; refuse scans without a record."""
    out = {FAIL} if include_doubtful else {FAIL, DOUBTFUL}
    problems, left_out, fingerprints = [], [], set()
    for name, path in scans.items():
        record = read_record(folder, name)
        if record is None:
            problems.append(f"{path}: has no record in {folder / QC_FOLDER}; run preprocess.py again")
        elif record["verdict"] in out:
            left_out.append(name)
        else:
            fingerprints.add(record["fingerprint"])
    if len(fingerprints) > 1:
        problems.append(
            f"{folder}: was preprocessed in {len(fingerprints)} ways; run preprocess.py on all its scans again"
        )
    if problems:
        raise InputError(problems)
    if left_out:
        print(f"note: {len(left_out)} doubtful or failed scans are left out: {list_some(left_out)}")
    return {name: path for name, path in scans.items() if name not in left_out}


def split_by_person(scans: Sequence[LabelledScan], fractions: Sequence[float], seed: int) -> list[LabelledScan]:
    """Assign each person to a split, so that the splits have similar ages and sites.

    Parameters
    ----------
    scans : sequence of LabelledScan
    fractions : sequence of 3 float
        Shares of the persons for training, validation and testing.
    seed : int

    Returns
    -------
    list of LabelledScan, with their splits

    Raises
    ------
    InputError
        If a split would be empty.

    Notes
    -----
    Persons are sorted by site and age, and shuffled within windows in which
    the smallest split gets one person. Each in turn goes to the split that
    is furthest below its share.
    """
    rng = np.random.default_rng(seed)
    first: dict[str, LabelledScan] = {}
    for scan in sorted(scans, key=lambda scan: (scan.person, scan.age)):
        first.setdefault(scan.person, scan)
    persons = sorted(first.values(), key=lambda scan: (scan.site, scan.age, scan.person))
    shares = np.array(fractions) / sum(fractions)
    window = int(np.ceil(1 / min(share for share in shares if share > 0)))
    order = np.concatenate(
        [start + rng.permutation(min(window, len(persons) - start)) for start in range(0, len(persons), window)]
    )
    counts = np.zeros(len(SPLITS))
    chosen = {}
    for place in order:
        number = int(np.argmax(np.where(shares > 0, shares * (counts.sum() + 1) - counts, -np.inf)))
        counts[number] += 1
        chosen[persons[place].person] = SPLITS[number]
    empty = [split for split, count, share in zip(SPLITS, counts, shares, strict=True) if share > 0 and not count]
    if empty:
        raise InputError(
            f"{len(persons)} persons are too few: {', '.join(empty)} would be empty; set FRACTIONS (--fractions)"
        )
    return [replace(scan, split=chosen[scan.person]) for scan in scans]


def check_given_splits(scans: Sequence[LabelledScan], label_table: Path) -> None:
    """Refuse a table with an unknown split, or with one person in two splits.

    Raises
    ------
    InputError
        With every such scan or person.
    """
    problems = [
        f"{label_table}: the split '{scan.split}' of {scan.subject_id} is none of {', '.join(SPLITS)}"
        for scan in scans
        if scan.split not in SPLITS
    ]
    persons: dict[str, set[str]] = {}
    for scan in scans:
        persons.setdefault(scan.person, set()).add(scan.split)
    problems += [
        f"{label_table}: {person} is in the splits {' and '.join(sorted(splits))}; keep each person in one"
        for person, splits in sorted(persons.items())
        if len(splits) > 1
    ]
    if problems:
        raise InputError(problems)


def write_dataset(folder: Path, scans: Sequence[LabelledScan], copy: bool) -> None:
    """Write ``train/``, ``valid/``, ``test/``, ``splits.csv`` and ``labels.csv``, whole or not at all.

    Raises
    ------
    InputError
        If the folder is not empty, or cannot be written.
    """
    folder = folder.resolve()
    check_writable(folder.parent)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: holds other files; set another OUTPUT_DIR (--output_dir)")
    table = _table_of(scans)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder.parent, prefix=".") as temporary:
            partial = Path(temporary) / folder.name
            for split in SPLITS:
                (partial / split).mkdir(parents=True)
            for scan in scans:
                suffix = ".nii.gz" if scan.path.name.lower().endswith(".gz") else ".nii"
                target = partial / scan.split / f"{scan.subject_id}{suffix}"
                if copy:
                    shutil.copyfile(scan.path, target)
                else:
                    target.symlink_to(scan.path.resolve())
            table.to_csv(partial / "splits.csv", index=False, float_format="%.2f")
            table[["subject_id", "age", "sex", "person"]].to_csv(
                partial / "labels.csv", index=False, float_format="%.2f"
            )
            partial.rename(folder)  # replaces an empty folder
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error}); set another OUTPUT_DIR (--output_dir)") from error


def _table_of(scans: Sequence[LabelledScan]) -> pd.DataFrame:
    """Return the rows of ``splits.csv``."""
    table = pd.DataFrame([vars(scan) | {"scan": scan.path.resolve()} for scan in scans])
    table["sex"] = table["sex"].map(SEX_NAMES)
    table["split"] = pd.Categorical(table["split"], SPLITS)
    columns = ["subject_id", "age", "sex", "person", "site", "split", "scan"]
    return table.sort_values(["split", "subject_id"])[columns]


def describe_splits(scans: Sequence[LabelledScan]) -> str:
    """Return a table of scans, persons, ages, sexes and sites in each split."""
    table = _table_of(scans)
    groups = table.groupby("split", observed=False)
    summary = groups.agg(
        scans=("person", "size"), persons=("person", "nunique"),
        youngest=("age", "min"), oldest=("age", "max"), mean_age=("age", "mean"),
    )  # fmt: skip
    counts = [pd.crosstab(table["split"], table[name]) for name in ("sex", "site") if table[name].any()]
    return summary.join(counts).to_string(float_format="%.1f")
