"""Cross-validate both stages of the cascade, and train weights on everybody."""

from utils.common.errors import InputError, run_command, user_errors
from utils.options.flags import flags_of
from utils.options.prediction import cross_validation_parser
from utils.options.training import parse_training_flags


def main() -> None:
    args = cross_validation_parser().parse_args()
    if not args.folds:
        raise InputError("--folds: cross-validation needs at least 2 folds")
    if args.weights_dir and args.stages == 1:
        raise InputError("--stages 1: weights are made of both stages; leave --weights_dir out, or train both")
    # Imported here, so that --help and wrong flags answer at once.
    import torch

    from utils.common.checkpoints import load_checkpoint
    from utils.common.files import check_writable
    from utils.data.cohort import load_cohort
    from utils.data.dataset import ScanDataset, make_loader, to_device
    from utils.data.images import model_grid
    from utils.data.scans import ScanStore
    from utils.evaluation.reports import announce_report, write_report
    from utils.prediction.cross_validation import (
        FEWEST_FOR_WEIGHTS,
        TABLE,
        flags_of_stage,
        member_checkpoints,
        pool,
        remember_settings,
        run_all,
        write_folds,
    )
    from utils.prediction.model_card import describe_weights
    from utils.prediction.weights import check_weights_folder, save_weights

    check_writable(args.output_dir)
    if args.weights_dir:
        check_weights_folder(args.weights_dir)
    trainings = [parse_training_flags(stage, flags_of_stage(stage, args)) for stage in range(1, args.stages + 1)]
    use_sex = any(training.use_sex for training in trainings)
    with user_errors():
        model_grid(trainings[0].voxel_size)
    # All scans are checked before the first training; a folder that holds folds was checked when it was begun.
    begun = (args.output_dir / TABLE).exists()
    scans = None if begun else ScanStore(trainings[0].voxel_size, trainings[0].normalization, None, args.num_workers)
    subjects = load_cohort({"scan": args.scan_folder}, args.label_table, scans, use_sex=use_sex)["scan"]
    if args.weights_dir and len(subjects) < FEWEST_FOR_WEIGHTS:
        raise InputError(f"{args.scan_folder}: {len(subjects)} scans are too few for the interval of weights")
    fold = write_folds(args.output_dir, subjects, args.folds, args.seed)
    remember_settings(args.output_dir, args, [flags_of(training) for training in trainings])
    run_all(args.output_dir, subjects, fold, args)
    predictions, report = pool(args.output_dir, subjects, fold, args)
    columns = ["interval_low", "interval_high", *(["first_stage_age"] if args.stages == 2 else [])]
    name = "Cascade" if args.stages == 2 else "First stage"
    title = f"{name}, cross-validated"
    metrics = write_report(args.output_dir, subjects, predictions, title, columns, stage_report=report)
    announce_report(args.output_dir, name.lower(), metrics)
    if args.weights_dir and metrics:
        checkpoints = [[load_checkpoint(path) for path in paths] for paths in member_checkpoints(args)]
        manifest, card = describe_weights(
            subjects,
            predictions,
            metrics,
            checkpoints[0][0],
            args.members,
            args.folds,
            args.data_notice,
        )
        scans = ScanStore(checkpoints[0][0]["voxel_size"], checkpoints[0][0]["normalization"], None, args.num_workers)
        loader = make_loader(ScanDataset(subjects, scans), [[i] for i in range(len(subjects))], 0, torch.device("cpu"))
        reference = sum(to_device(batch, torch.device("cpu"))["volume"][0, 0] for batch in loader) / len(subjects)
        save_weights(args.weights_dir, checkpoints, manifest, card, reference)
        print(f"weights and model card: {args.weights_dir}")


if __name__ == "__main__":
    run_command(main)
