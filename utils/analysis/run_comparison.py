"""Compare runs: the flags that differ, the accuracy of both stages, paired differences, training curves."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from utils.analysis.accuracy import accuracy_row
from utils.analysis.gap_report import cell
from utils.analysis.gap_tables import SCAN, ages_of, one_scan_each, read_tables
from utils.common.errors import InputError
from utils.common.files import read_json
from utils.evaluation.metrics import compare_errors
from utils.training.state import FREE_ON_RESUME

STAGES = ("first stage", "second stage")
LEFT_OUT = {*FREE_ON_RESUME, "command"} - {"train_folder", "valid_folder", "label_table", "sorter"}  # change no result
SAME_AGE = 0.01  # years
Flags = dict[str, Any]


class Training(NamedTuple):
    """The training of a stage: its flags, and a row of scalars for each epoch."""

    flags: Flags
    epochs: pd.DataFrame


@dataclass
class Run:
    """What is known of a run.

    Parameters
    ----------
    name : str
        What tells its folder from those of the other runs.
    trainings : dict of str to Training
        By the names of `STAGES`.
    ages : DataFrame
        Of `utils.analysis.gap_tables.read_tables`; empty if nothing was tested.
    """

    name: str
    trainings: dict[str, Training] = field(default_factory=dict)
    ages: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def is_cascade(self) -> bool:
        """Whether the brain ages are the second stage's."""
        return len(self.ages) > 0 and bool(np.isfinite(self.ages["first_stage_age"].astype(float)).all())


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read the runs in some folders: of a training, a test, both stages, or a cross-validation.

    Raises
    ------
    InputError
        With everything that is wrong: no run, the same run twice, tables that cannot be read, no common subjects.
    """
    if len(folders) < 2:
        raise InputError("--runs: a comparison needs at least two runs; name more folders in RUNS")
    paths = [folder.resolve() for folder in folders]
    problems = [
        f"{folder}: is given twice; name each run once"
        for number, folder in enumerate(folders)
        if paths[number] in paths[:number]
    ]
    common = os.path.commonpath([path.parent for path in paths])
    runs = [Run(os.path.relpath(path, common)) for path in paths]
    for folder, run in zip(folders, runs, strict=True):
        try:
            run.trainings = dict(_trainings_in(folder))
            table = next((path for path in _tables_of(folder) if path.is_file()), None)
            if table:
                run.ages = read_tables({"test": [table]}, None, {})["test"]
            elif not run.trainings:
                problems.append(
                    f"{folder}: is no run; give the OUTPUT_DIR of a training, a test or a cross-validation, or a "
                    "folder that holds first_stage/ and second_stage/"
                )
        except InputError as error:
            problems += error.problems
    tested = [run for run in runs if len(run.ages)]
    problems += [problem for run in tested[1:] for problem in _mismatch(tested[0], run)]
    if problems:
        raise InputError(problems)
    return runs


def _tables_of(folder: Path) -> Iterator[Path]:
    """Yield where the predictions of a run may stand, those of the cascade first."""
    for part in ("", "test", "second_stage/test", "first_stage/test"):
        yield folder / part / "predictions.csv"


def _trainings_in(folder: Path) -> Iterator[tuple[str, Training]]:
    """Yield the stages that were trained in a folder, or in those of a cross-validation."""
    settings = folder / "settings.json"
    recorded = _read(settings) if settings.is_file() else {}
    for stage in STAGES:
        end = f" of the {stage}"
        flags = {name[2:].removesuffix(end): value for name, value in recorded.items() if name.endswith(end)}
        if flags:
            files = sorted(folder.glob(f"*/member_*/{stage.replace(' ', '_')}/metrics.csv"))
            yield stage, Training(flags, _read_epochs(files))
    for place in (folder, folder / "first_stage", folder / "second_stage"):
        file = place / "hyperparameters.json"
        if file.is_file():
            flags = _read(file)
            first = flags.get("first_stage_checkpoint")
            below = Path(first).parent if isinstance(first, str) else place
            if below != place and (below / "hyperparameters.json").is_file():
                yield STAGES[0], Training(_read(below / "hyperparameters.json"), _read_epochs([below / "metrics.csv"]))
            yield STAGES[first is not None], Training(flags, _read_epochs([place / "metrics.csv"]))


def _read(path: Path) -> Flags:
    """Read flags, with the version of each package as one of them."""
    try:
        flags: Flags = read_json(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); leave this run out") from error
    versions = flags.pop("versions", {})
    return flags | {f"version of {name}": value for name, value in dict(versions).items()}


def _read_epochs(files: Sequence[Path]) -> pd.DataFrame:
    """Return the scalars by epoch, counted from 1, averaged over trainings; empty before the first epoch's end."""
    try:
        tables = [pd.read_csv(file) for file in files if file.is_file()]
        if not tables:
            return pd.DataFrame()
        table = pd.concat(tables).groupby("epoch").mean()
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{files[0]}: is no table of a training ({error}); leave this run out") from error
    return table.set_axis(table.index + 1)


def curve_of(training: Training) -> tuple[pd.Series, str]:
    """Return the MAE by epoch, years, and of which split it is; the validation's where there is one."""
    for split in ("valid", "train"):
        if f"{split}/mae" in training.epochs:
            return training.epochs[f"{split}/mae"].dropna(), split
    return pd.Series(dtype=float), ""


def _joined(one: Run, other: Run) -> pd.DataFrame:
    """Return the ages of the scans that two runs have in common, one of each person."""
    joined = one_scan_each(one.ages).merge(other.ages, on=SCAN, suffixes=("", "_other"))
    return joined.reset_index(drop=True)


def _mismatch(one: Run, other: Run) -> Iterator[str]:
    """Yield why two runs cannot be compared."""
    joined = _joined(one, other)
    if joined.empty:
        yield (
            f"{other.name}: has no subject in common with {one.name} ({other.ages['subject_id'].iloc[0]} and others "
            f"there, {one.ages['subject_id'].iloc[0]} here); test both on the same scans"
        )
        return
    differ = joined[(joined["chronological_age"] - joined["chronological_age_other"]).abs() > SAME_AGE]
    if len(differ):
        row = differ.iloc[0]
        yield (
            f"{other.name}: gives other ages than {one.name} for {len(differ)} subjects, such as {row['subject_id']} "
            f"({row['chronological_age_other']:g} and {row['chronological_age']:g}); test both with one label table"
        )


def differing_flags(runs: Sequence[Run]) -> pd.DataFrame:
    """Return the flags that differ, a row for each and a column for each run; "-" where a run has none."""
    rows: dict[str, list[str]] = {}
    for stage in STAGES:
        trainings = [run.trainings.get(stage) for run in runs]
        names = dict.fromkeys(name for training in trainings if training for name in training.flags)
        for name in names:
            if name not in LEFT_OUT:
                cells = [_shown(training.flags, name) if training else None for training in trainings]
                if len({cell for cell in cells if cell is not None}) > 1:
                    rows[f"{stage}: {name}"] = [cell or "-" for cell in cells]
    return pd.DataFrame.from_dict(rows, orient="index", columns=[run.name for run in runs])


def _shown(flags: Flags, name: str) -> str:
    """Return the value of a flag as a user would write it."""
    value = flags.get(name, "-")
    if isinstance(value, list):
        return ",".join(map(str, value)) or "none"
    return str(value).lower() if isinstance(value, bool) else "none" if value is None else str(value) or "''"


def compare(runs: Sequence[Run], seed: int = 0) -> pd.DataFrame:
    """Return the accuracy of each run, and its difference to the first run that was tested.

    Parameters
    ----------
    runs : sequence of Run
    seed : int
        Of the bootstrap.

    Returns
    -------
    DataFrame
        One row a run: ``n`` persons, each with the first scan; the figures
        of `utils.evaluation.metrics.accuracy` of its brain ages, and of the
        first stage's with ``first_stage_`` before; ``second_stage_gain``,
        ``gain`` over the first run, on ``common`` persons: by how many years
        the MAE is lower; all with ``_low``, ``_high``, the 95 % interval of
        the bootstrap, paired for gains; and for each stage its epochs and
        the lowest MAE of its curve. NaN where unknown.
    """
    tested = [run for run in runs if len(run.ages)]
    rows = []
    for run in runs:
        row: dict[str, Any] = {"run": run.name, "estimate": ""}
        if len(run.ages):
            row |= _accuracy_of(run, seed)
            if run is not tested[0]:
                joined = _joined(tested[0], run)
                age, own, other = (
                    joined[name].to_numpy(float) for name in ("chronological_age", "brain_age_other", "brain_age")
                )
                row |= {"common": len(joined), **_named("gain", compare_errors(age, own, other, seed))}
        for stage, training in run.trainings.items():
            curve, split = curve_of(training)
            if len(curve):
                name = stage.replace(" ", "_")
                row |= {f"{name}_epochs": int(curve.index[-1]), f"{name}_{split}_mae": float(curve.min())}
        rows.append(row)
    table = pd.DataFrame(rows)
    needed = ["n", "mae", "pearson", "first_stage_mae", "second_stage_gain", "common", "gain"]
    return table.reindex(columns=[*table, *(name for name in needed if name not in table)])


def _accuracy_of(run: Run, seed: int) -> dict[str, Any]:
    """Return the accuracy of a run's stages."""
    ages = one_scan_each(run.ages)
    age, brain_age = ages_of(ages)
    row = {"estimate": "cascade" if run.is_cascade else "brain age", **accuracy_row(age, brain_age, seed)}
    if run.is_cascade:
        first = ages["first_stage_age"].to_numpy(float)
        own = accuracy_row(age, first, seed)
        row |= {f"first_stage_{name}": value for name, value in own.items() if name != "n"}
        row |= _named("second_stage_gain", compare_errors(age, brain_age, first, seed))
    elif list(run.trainings) == [STAGES[0]]:
        row["estimate"] = STAGES[0]
    return row


def _named(name: str, difference: Mapping[str, float]) -> dict[str, float]:
    """Name a difference of `compare_errors` and its interval."""
    return {name: difference["difference"], f"{name}_low": difference["low"], f"{name}_high": difference["high"]}


def _cell(row: Mapping[Any, Any], name: str) -> str:
    """Format a figure of the table; counts as whole numbers."""
    return f"{row[name]:.0f}".replace("nan", "-") if name in ("n", "common") else cell(row, name)


def describe_comparison(table: pd.DataFrame, flags: pd.DataFrame) -> Iterator[str]:
    """Yield the lines that the screen shows."""
    reference = table["run"][table["n"].notna()]
    headings = {
        "run": "run", "estimate": "estimate", "n": "N", "mae": "MAE (years)", "pearson": "Pearson",
        "first_stage_mae": "first stage: MAE", "second_stage_gain": "second stage gains",
        "gain": f"gain over {reference.iloc[0]}" if len(reference) else "gain", "common": "common",
    }  # fmt: skip
    kept = [name for name in headings if name in ("run", "estimate") or table[name].notna().any()]
    cells = [[headings[name] for name in kept]]
    cells += [[_cell(row, name) for name in kept] for row in table.to_dict("records")]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
    if len(reference):
        yield "In brackets: 95 % intervals by the bootstrap over persons, paired for gains; years of MAE."
    yield "Flags that differ:" if len(flags) else "No flags differ."
    for name, values in flags.iterrows():
        groups = {value: [run for run in flags.columns if values[run] == value] for value in dict.fromkeys(values)}
        yield f"  {name}   " + "   ".join(f"{value}: {', '.join(own)}" for value, own in groups.items())
