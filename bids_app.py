"""Brain ages of a BIDS data set, with the call of every BIDS App: preprocessing, prediction, report."""

import csv
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from utils.common.errors import InputError, run_command
from utils.common.files import PROJECT, replacing
from utils.options.bids_app import bids_app_parser


def main() -> None:
    args = bids_app_parser().parse_args()
    # Imported here, so that --help and wrong flags answer at once.
    from utils.analysis.gap_checks import FEWEST_PERSONS
    from utils.common.files import check_writable
    from utils.data.scan_folders import file_name_of, list_bids
    from utils.data.subjects import person_of

    if not args.bids_dir.is_dir():
        raise InputError(f"{args.bids_dir}: no such folder; give the root of a BIDS data set")
    check_writable(args.output_dir, args.bids_dir)
    table = args.label_table or args.bids_dir / "participants.tsv"
    results = args.output_dir / "brain_age"
    sessions = ["--sessions", ",".join(args.session_label)]
    device = ["--device", args.device]
    predict = ["predict.py", "--input", args.output_dir, "--weights_dir", args.weights_dir, *sessions, *device]
    predict += ["--overwrite", "true", "--label_table", table if args.label_table or table.is_file() else ""]
    if args.analysis_level == "participant":
        people = ["--participants", ",".join(args.participant_label)]
        where = ["--input", args.bids_dir, "--output_dir", args.output_dir, "--layout", "bids"]
        _run("preprocess.py", *where, *people, *sessions, *device)
    wanted = {label.removeprefix("sub-") for label in args.participant_label}
    prepared = {person_of(file_name_of(path)).removeprefix("sub-") for path in list_bids(args.output_dir)}
    found = sorted(prepared & wanted if wanted else prepared)
    if not found:
        raise InputError(f"{args.output_dir}: holds no prepared scan of these people; its qc.csv says why")
    chosen = found if wanted else []  # of these people alone, or of all
    predict += ["--participants", ",".join(chosen)]
    if args.analysis_level == "participant":
        _run(*predict, "--output_dir", results / _folder_of(chosen))
        return
    _run(*predict, "--output_dir", results)
    known = _keep_known_ages(results / "predictions.csv", results / "with_ages.csv")
    if known < FEWEST_PERSONS:
        print(f"note: no report, because the ages of {known} people are known ({table}); it needs {FEWEST_PERSONS}")
        return
    report = ["--predictions", results / "with_ages.csv", "--output_dir", results / "report", "--overwrite", "true"]
    _run("analyse_brain_age_gap.py", *report, "--weights_dir", args.weights_dir)


def _run(script: str, *flags: object) -> None:
    """Run another entry point; end with its status if it fails."""
    status = subprocess.run([sys.executable, str(PROJECT / script), *map(str, flags)], check=False).returncode
    if status:
        sys.exit(status)


def _folder_of(labels: Sequence[str]) -> str:
    """Return the folder of a call's brain ages, so that calls side by side have folders of their own."""
    if not labels:
        return "all"
    return f"sub-{labels[0]}" + (f"_and_{len(labels) - 1}_more" if len(labels) > 1 else "")


def _keep_known_ages(predictions: Path, target: Path) -> int:
    """Write the predictions that have both ages to another table; return how many people there are."""
    with predictions.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["brain_age"] and row["chronological_age"]]
    if rows:
        with replacing(target) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return len({row["person"] for row in rows})


if __name__ == "__main__":
    run_command(main)
