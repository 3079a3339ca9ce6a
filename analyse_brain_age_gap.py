"""Analyse brain ages: accuracy, correction for age, diagnosis, uncertainty, repeated scans; write one report."""

from utils.common.errors import run_command
from utils.options.analysis import parse_gap_flags


def main() -> None:
    args = parse_gap_flags()
    # Imported here, so that --help and errors in flags appear at once.
    from utils.analysis.gap_analysis import analyse, provenance_of
    from utils.analysis.gap_checks import check_test_set
    from utils.analysis.gap_correction import describe_corrections
    from utils.analysis.gap_report import check_analysis_folder, write_analysis
    from utils.analysis.gap_tables import ROLES, read_tables
    from utils.common.log_file import keep_log
    from utils.prediction.weights import read_manifest

    check_analysis_folder(args.output_dir, args.overwrite)
    groups = {"test": args.predictions, "fit": args.fit_predictions, "calibration": args.calibration_predictions}
    columns = {role: getattr(args, f"{role}_column") for role in ROLES}
    tables = read_tables(groups, args.label_table, columns, args.healthy_label)
    healthy, patient_labels = check_test_set(tables["test"], args.healthy_label, args.patient_labels)
    sections, subjects, corrections = analyse(
        args, tables, healthy, patient_labels, read_manifest(args.weights_dir) if args.weights_dir else None
    )
    fitted = {"corrections.json": describe_corrections(corrections)} if corrections else {}
    write_analysis(args.output_dir, sections, subjects, provenance_of(tables["test"]), fitted)
    keep_log(args.output_dir)
    for section in sections:
        for line in [*section.alarms, *section.headlines]:
            print(line)
        for line in section.warnings:
            print(f"WARNING: {line}")
    print(f"report: {args.output_dir / 'report.html'}   tables, figures and metrics.json beside it")


if __name__ == "__main__":
    run_command(main)
