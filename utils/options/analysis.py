"""The flags of the analysis of brain-age gaps."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from utils.common.choices import CORRECTIONS
from utils.options.flags import (
    Parser,
    add_overwrite,
    boolean,
    count,
    flag,
    fraction,
    labels,
    not_negative,
    optional_path,
    optional_text,
    paths,
    some_of,
    whole,
)

COLUMNS = (  # flags, meaning
    ("--subject_id_column", "subject or file name"),
    ("--chronological_age_column --age_column", "chronological age, years"),
    ("--brain_age_column", "the model's estimate, years"),
    ("--first_stage_age_column", "another estimate to compare with, such as the first stage's, years"),
    ("--true_brain_age_column", "true brain age of simulated subjects, years"),
    ("--diagnosis_column", "diagnosis, healthy or ill"),
    ("--sex_column", "sex: F or M, 0 or 1"),
    ("--site_column", "site or scanner"),
    ("--session_column", "which of a person's scans it is"),
    ("--person_column", "whose scan it is; default: person, else the names of BIDS and the public data sets tell"),
)


def gap_parser() -> Parser:
    """Return the parser of ``analyse_brain_age_gap.py``."""
    parser = Parser(
        "Turn brain ages into evidence: accuracy, bias correction, diagnosis, uncertainty, repeats, leakage.\n\n"
        "Reads predictions.csv of this project, or any table with subject, age and brain age. Writes\n"
        "report.html, tables (CSV), metrics.json and figures (PNG, SVG). A person counts once, with the first\n"
        "scan; further scans serve the section on repeats."
    )
    group = parser.add_argument_group("data", "Several files go in quotes, separated by blanks; * is any name.")
    flag(
        group, "--predictions", "runs/second_stage/test/predictions.csv", paths,
        "tables of the test set: subject, age, brain age; patients too, for the comparison with healthy subjects",
    )  # fmt: skip
    flag(
        group, "--label_table", "", optional_path,
        "table with what the predictions lack: diagnosis, site, sex, session, person; '': none",
    )  # fmt: skip
    flag(group, "--output_dir", "runs/brain_age_gap", Path, "folder for the results")
    add_overwrite(group)
    group = parser.add_argument_group("correction of the gap for its dependence on age")
    flag(
        group, "--correction", "none", some_of(CORRECTIONS),
        "one or several, separated by commas, reported beside the uncorrected figures. linear-gap: gap = alpha * age + "
        "beta, the authors'; linear-prediction: brain age = a + b * age, inverted; covariate: the gap's residual after "
        "age, its square and sex, only for comparing groups",
        metavar="{none," + ",".join(CORRECTIONS) + "}",
    )  # fmt: skip
    flag(
        group, "--fit_predictions", "", paths,
        "predictions of at least 40 healthy subjects outside test set and training, over the test set's ages: the "
        "correction is fitted on them",
    )  # fmt: skip
    flag(
        group, "--correction_file", "", optional_path,
        "corrections.json of an earlier analysis, applied instead of a new fit",
    )  # fmt: skip
    group = parser.add_argument_group("diagnosis")
    flag(group, "--healthy_label", "HC", str, "how the diagnosis column calls healthy subjects")
    flag(
        group, "--patient_labels", "", labels,
        "diagnoses to compare with healthy subjects, one by one, such as AD,MCI; '': all with enough persons",
    )  # fmt: skip
    flag(
        group, "--protocol", "ours", str,
        "ours: linear support vector machine, repeated stratified 5-fold cross-validation; paper: as the released "
        "script, RBF, C = 10, three shuffle splits",
        choices=("ours", "paper"),
    )  # fmt: skip
    flag(
        group, "--match_ages", "false", boolean,
        "compare pairs at most 3 years apart; otherwise older patients look ill by their age alone",
    )  # fmt: skip
    flag(group, "--repeats", "10", count, "of the 5 folds, drawn anew each time; for --protocol ours")
    flag(group, "--permutations", "1000", count, "shuffled labels for the p-value, which is at least 1 / (this + 1)")
    group = parser.add_argument_group("uncertainty and repeated scans")
    flag(
        group, "--calibration_predictions", "", paths,
        "predictions of healthy subjects outside test set and training, whose errors give the intervals; those of "
        "--fit_predictions will do",
    )  # fmt: skip
    flag(group, "--coverage", "0.9", fraction, "share of new subjects whose ages the intervals should hold")
    flag(
        group, "--retest_years", "1", not_negative,
        "scans of a person at most so far apart count as test and retest; the others give the slope per year",
    )  # fmt: skip
    group = parser.add_argument_group("leakage")
    flag(
        group, "--checkpoints", "", paths,
        "best.pt of the stages that made these ages; their training subjects may be in neither test set nor fit",
    )  # fmt: skip
    flag(group, "--weights_dir", "", optional_path, "the same for weights that predict.py used")
    flag(
        group, "--allow_leakage", "false", boolean,
        "go on although persons are on both sides; the report then says so in red",
    )  # fmt: skip
    group = parser.add_argument_group("columns", "Of any of the tables, where the known names do not fit.")
    for names, meaning in COLUMNS:
        flag(group, names, None, optional_text, meaning, metavar="NAME")
    flag(parser, "--seed", "0", whole, "of bootstrap, folds and permutations")
    return parser


def parse_gap_flags(flags: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line of ``analyse_brain_age_gap.py``; refuse flags that contradict each other."""
    parser = gap_parser()
    args = parser.parse_args(flags)
    if not args.predictions:
        parser.error("--predictions names no file; give the predictions.csv of a test")
    if args.correction_file and args.fit_predictions:
        parser.error(
            "--correction_file and --fit_predictions contradict each other; apply an old fit, or make a new one"
        )
    if args.correction and not (args.fit_predictions or args.correction_file):
        parser.error(
            "--correction needs --fit_predictions (healthy subjects outside the test set) or --correction_file; "
            "it is never fitted on the test set"
        )
    if args.fit_predictions and not args.correction:
        parser.error("--fit_predictions does nothing with --correction none; set CORRECTION, such as linear-gap")
    return args


def comparison_parser() -> Parser:
    """Return the parser of ``compare_runs.py``."""
    parser = Parser(
        "Compare any number of runs: the flags that differ, the accuracy of both stages with intervals, paired\n"
        "differences to the first run on common subjects, and the training curves over each other.\n\n"
        "Writes comparison.csv, one row a run, and comparison.png. A person counts once, with the first scan."
    )
    flag(
        parser, "--runs", "runs/first_stage runs/second_stage", paths,
        "folders of runs, separated by blanks, * is any name: of a training (with its test/), a test, a "
        "cross-validation, or one that holds first_stage/ and second_stage/. The others are compared with the first",
    )  # fmt: skip
    flag(parser, "--output_dir", "runs/comparison", Path, "folder for the results")
    add_overwrite(parser)
    flag(parser, "--seed", "0", whole, "of the bootstrap")
    return parser
