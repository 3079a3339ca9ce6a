"""Cross-validate both stages of the cascade, and train weights on all subjects."""

from utils.common.errors import InputError, run_command, user_errors
from utils.options.flags import flags_of, settings_from
from utils.options.prediction import cross_validation_parser
from utils.options.training import parse_training_flags


def main() -> None:
    args = cross_validation_parser().parse_args()
    if not args.folds:
        raise InputError("--folds: cross-validation needs at least 2 folds")
    if args.weights_dir and args.stages == 1:
        raise InputError("--stages 1: weights hold both stages; leave --weights_dir out, or train both")
    if args.hold_out != "people" and not args.site_column:
        raise InputError(f"--hold_out {args.hold_out}: name the column of sites with SITE_COLUMN (--site_column)")
    if args.weights_dir and args.hold_out == "sites":
        raise InputError("--hold_out sites: weights need the errors within sites, too; use --hold_out both")
    # Imported here, so that --help and wrong flags answer at once.
    from utils.common.files import check_writable
    from utils.common.log_file import keep_log
    from utils.data.cohort import are_known, load_cohort
    from utils.data.images import model_grid
    from utils.data.scans import ScanStore
    from utils.evaluation.reports import announce_report, report_files, write_report
    from utils.prediction import cross_validation
    from utils.prediction.script_runs import check_recorded
    from utils.prediction.site_figures import announce_sites, describe_sites
    from utils.prediction.weights import check_weights_folder, read_initial_weights
    from utils.training.stages import SecondStage

    settings = settings_from(cross_validation.CrossValidation, args)
    check_writable(args.output_dir, args.scan_folder)
    if args.weights_dir:
        check_weights_folder(args.weights_dir)
    stages = range(1, args.stages + 1)
    trainings = [parse_training_flags(n, cross_validation.training_arguments(n, settings)) for n in stages]
    with user_errors():
        model_grid(trainings[0].voxel_size)
    # All scans are checked before the first training; a folder with folds was checked when it was begun.
    begun = (args.output_dir / cross_validation.TABLE).exists()
    held = [name for name in [*report_files(), "sites.csv"] if (args.output_dir / name).exists()]
    if held and not begun:
        raise InputError(f"{args.output_dir}: holds {held[0]} of something else; set another OUTPUT_DIR (--output_dir)")
    scans = None if begun else ScanStore(trainings[0].voxel_size, trainings[0].normalization, None, args.num_workers)
    subjects = load_cohort(
        {"scan": args.scan_folder}, args.label_table, scans, use_sex=trainings[0].use_sex, site_column=args.site_column
    )["scan"]
    if args.weights_dir and len(subjects) < cross_validation.FEWEST_FOR_WEIGHTS:
        raise InputError(f"{args.scan_folder}: {len(subjects)} scans are too few for the 90 % interval of weights")
    for stage, training in zip(stages, trainings, strict=True):
        initial = read_initial_weights(training.initial_weights, stage, training.age_interval)
        if initial and are_known(subjects, initial.subjects).any():
            raise InputError(
                f"{training.initial_weights}: was trained on people of {args.scan_folder}; they would leak"
            )
    folds = cross_validation.assign_folds(subjects, settings)
    check_recorded(args.output_dir / "settings.json", args.label_table, [flags_of(training) for training in trainings])
    keep_log(args.output_dir, shard=args.shard)
    left = cross_validation.run_all(subjects, folds, settings)
    if left:
        print(f"left to other shards: {len(left)} scripts, such as {left[0]}; the last shard reports, or another call")
        return
    name, own = ("Cascade", SecondStage.columns[:1]) if args.stages == 2 else ("First stage", ())
    columns = ["interval_low", "interval_high", *own]
    predictions, metrics = {}, {}
    for held_out, fold in folds.items():
        predictions[held_out], report = cross_validation.pool(subjects, fold, settings)
        folder = args.output_dir if held_out == "people" else args.output_dir / "unseen_sites"
        title = f"{name}, {'cross-validated' if held_out == 'people' else 'on sites that training never saw'}"
        groups = [subject.site for subject in subjects]
        metrics[held_out] = (
            write_report(
                folder,
                subjects,
                predictions[held_out],
                title,
                columns,
                stage_report=report,
                groups=groups,
                weights_sha256=predictions[held_out]["weights_sha256"].tolist(),
            )
            or {}
        )
        print(f"{held_out} held out")
        announce_report(folder, name.lower(), metrics[held_out])
    if args.site_column:
        rows = describe_sites(subjects, predictions, folds)
        announce_sites(args.output_dir / "sites.csv", rows)
    if args.weights_dir:
        cross_validation.write_weights(args.weights_dir, subjects, predictions, metrics, settings, folds)
        print(f"weights and model card: {args.weights_dir}")


if __name__ == "__main__":
    run_command(main)
