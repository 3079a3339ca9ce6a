"""What healthy people of a new scanner are worth: calibration, fine-tuning and training anew, by their number.

    HOLD_OUT=sites SITE_COLUMN=site OUTPUT_DIR=runs/loso ... bash bash_cross_validate.sh
    python -m benchmarks.adaptation --cross_validation runs/loso --label_table labels.csv

Takes a cross-validation that held out sites. Of each site, some people adapt the networks that never saw it, and the
others are tested. Fine-tuning runs the bash scripts with recipes/fine_tune.sh, training anew with the RECIPE of the
environment; both once for each number of people, calibration in many draws. What is finished is not run again.
"""

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from utils.common.files import PROJECT
from utils.data.subjects import Subject
from utils.evaluation.metrics import INTERVAL_COVERAGE, interval_radius
from utils.prediction.calibration import fit_calibration, prior_of
from utils.prediction.script_runs import link_scans, run_script
from utils.prediction.site_figures import seen_ages

NUMBERS = (0, 5, 10, 20, 40)
TESTED = 8  # people of a site who must be left to be tested
DRAWS = 200


def calibration_rows(table: pd.DataFrame, rng: np.random.Generator) -> list[dict[str, object]]:
    """Return error and coverage on each site after calibration by some of its people.

    Parameters
    ----------
    table : DataFrame
        ``site``, ``chronological_age``, ``brain_age``, of networks that never saw the site.
    rng : numpy.random.Generator
    """
    table = table.assign(gap=table["brain_age"] - table["chronological_age"])
    rows = []
    seen = seen_ages(table["chronological_age"].to_numpy(), table["site"].to_numpy())
    for site, own in table.groupby("site"):
        others = table[(table["site"] != site) & seen]
        prior = prior_of([gaps.to_numpy() for _, gaps in others.groupby("site")["gap"]])
        radius = interval_radius(others["gap"].abs().to_numpy(), INTERVAL_COVERAGE)
        for number in NUMBERS:
            if len(own) - number < TESTED:
                continue
            found = []
            for _ in range(DRAWS if number else 1):
                order = rng.permutation(len(own))
                used, tested = own.iloc[order[:number]], own.iloc[order[number:]]
                age, radii = tested["brain_age"].to_numpy(), np.full(len(tested), radius)
                if number:
                    known = used["chronological_age"].to_numpy(), used["brain_age"].to_numpy()
                    age, radii = fit_calibration(*known, *prior).apply(age)
                gap = age - tested["chronological_age"].to_numpy()
                found.append((np.abs(gap).mean(), abs(gap.mean()), (np.abs(gap) <= radii).mean()))
            mae, mean_gap, coverage = np.mean(found, 0)
            rows.append({"site": site, "way": "calibration", "people": number, "mae": mae, "mean_gap": mean_gap,
                         "coverage": coverage, "pearson": np.nan})  # fmt: skip
    return rows


def train(folder: Path, scans: dict[str, list[Subject]], variables: Mapping[str, object], initial: Path | None) -> Path:
    """Train and test both stages; return the table of the test."""
    for split, subjects in scans.items():
        link_scans(folder / split, subjects)
    common = {
        "NUM_WORKERS": os.environ.get("NUM_WORKERS", 0),
        **variables,
        "TRAIN_FOLDER": folder / "train",
        "VALID_FOLDER": "",
        "TEST_FOLDER": "",
    }
    first, second, log = folder / "first_stage", folder / "second_stage", folder / "log.txt"
    for stage, own in ((1, first), (2, second)):
        name = own.name
        if not (own / "best.pt").exists() or (stage == 1 and not (own / "train_discretized_age.npy").exists()):
            start = {"INITIAL_WEIGHTS": initial / name / "best.pt"} if initial else {}
            own_variables = {**common, **start, "OUTPUT_DIR": own, "FIRST_STAGE_CHECKPOINT": first / "best.pt"}
            run_script(log, f"bash_train_{name}.sh", ["--resume"], own_variables)
    test = {**common, "TEST_FOLDER": folder / "test", "CHECKPOINT": second / "best.pt",
            "FIRST_STAGE_CHECKPOINT": first / "best.pt", "OUTPUT_DIR": folder / "predictions",
            "OVERWRITE": "true"}  # fmt: skip
    if not (folder / "predictions" / "predictions.csv").exists():
        run_script(log, "bash_test_second_stage.sh", variables=test)
    return folder / "predictions" / "predictions.csv"


def training_rows(
    cross_validation: Path, table: pd.DataFrame, numbers: Sequence[int], variables: Mapping[str, object]
) -> list[dict[str, object]]:
    """Return error on each site after fine-tuning, and after training anew, with some of its people."""
    rows = []
    for site, own in table.groupby("site"):
        for number in numbers:
            if not 0 < number <= len(own) - TESTED:
                continue
            order = np.random.default_rng(0).permutation(len(own))
            fold = cross_validation / str(own["fold"].iloc[0])
            people = [Subject(row.subject_id, fold / "test" / row.scan) for row in own.itertuples()]
            scans = {"train": [people[i] for i in order[:number]], "test": [people[i] for i in order[number:]]}
            for way, more, initial in (
                ("fine-tuning", {"RECIPE": PROJECT / "recipes" / "fine_tune.sh"}, fold / "member_1"),
                ("training anew", {"BATCH_SIZE": 8}, None),
            ):
                folder = cross_validation / "adaptation" / str(site) / f"{way.replace(' ', '_')}_{number}"
                found = pd.read_csv(train(folder, scans, {**variables, **more}, initial))
                gap = found["brain_age"] - found["chronological_age"]
                pearson = found["brain_age"].corr(found["chronological_age"])
                rows.append({"site": site, "way": way, "people": number, "mae": gap.abs().mean(),
                             "mean_gap": abs(gap.mean()), "coverage": np.nan, "pearson": pearson})  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cross_validation", type=Path, required=True, help="OUTPUT_DIR of bash_cross_validate.sh")
    parser.add_argument("--label_table", type=Path, required=True, help="table of subject, age, sex")
    parser.add_argument("--train", type=int, nargs="*", default=[10, 20, 40], help="people to train with; none: skip")
    args = parser.parse_args()
    folds = pd.read_csv(args.cross_validation / "folds.csv", dtype={"subject_id": str})
    predicted = pd.read_csv(args.cross_validation / "unseen_sites" / "predictions.csv", dtype={"subject_id": str})
    table = predicted.merge(folds[["subject_id", "site", "scan"]], on="subject_id")
    table = table.assign(fold=table["site"], site=table["site"].str.removeprefix("site_"))
    rows = calibration_rows(table, np.random.default_rng(0))
    rows += training_rows(args.cross_validation, table, args.train, {"LABEL_TABLE": args.label_table.resolve()})
    result = pd.DataFrame(rows)
    result.to_csv(args.cross_validation / "adaptation.csv", index=False)
    print(result.to_string(index=False, float_format=lambda value: f"{value:.2f}"))


if __name__ == "__main__":
    main()
