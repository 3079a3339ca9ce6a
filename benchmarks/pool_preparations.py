"""Pool one cohort's scans, prepared in several ways, into one folder of links with a label table.

python -m benchmarks.pool_preparations --scan_folders ours theirs --label_table labels.csv --output_dir pooled

Weights that are trained on such a folder mind less how a scan was prepared. All scans of a person stay in one fold.
"""

import argparse
import csv
from pathlib import Path

from utils.cohort import load_cohort
from utils.errors import InputError, run_command
from utils.files import check_writable, replacing
from utils.reports import SEX_NAMES
from utils.subjects import person_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--scan_folders", type=Path, nargs="+", required=True, help="of prepared scans; their names tell them apart"
    )
    parser.add_argument("--label_table", type=Path, required=True, help="subject, age in years, sex")
    parser.add_argument("--output_dir", type=Path, required=True, help="new folder, for the links and labels.csv")
    args = parser.parse_args()
    links: dict[Path, Path] = {}
    rows, problems = [], []
    for folder in args.scan_folders:
        for subject in load_cohort({"scan": folder}, args.label_table, None, use_sex=False)["scan"]:
            name = f"{subject.subject_id}_{folder.absolute().name}"
            extension = "".join(
                subject.path.suffixes[-2:] if subject.path.suffix == ".gz" else subject.path.suffixes[-1:]
            )
            link = args.output_dir / f"{name}{extension}"
            if person_of(name) != person_of(subject.subject_id):
                problems.append(
                    f"{subject.path}: its name does not tell the person; name it as BIDS does, sub-01.nii.gz"
                )
            elif link in links:
                problems.append(f"{folder}: has the name of another folder; give each a name of its own")
            links[link] = subject.path
            rows.append([name, f"{subject.chronological_age:.4f}", SEX_NAMES[subject.sex]])
    if args.output_dir.exists():
        problems.append(f"{args.output_dir}: exists already; give a new folder (--output_dir)")
    if problems:
        raise InputError(problems)
    check_writable(args.output_dir)
    args.output_dir.mkdir(parents=True)
    for link, path in links.items():
        link.symlink_to(path.resolve())
    with (
        replacing(args.output_dir / "labels.csv") as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        csv.writer(file).writerows([["subject_id", "age", "sex"], *rows])
    print(f"{len(rows)} scans of {len({person_of(row[0]) for row in rows})} persons: {args.output_dir}")


if __name__ == "__main__":
    run_command(main)
