"""Estimate brain ages with the first stage, and write its discretized ages."""

from utils.common.errors import run_command, user_errors
from utils.options.testing import testing_parser


def main() -> None:
    args = testing_parser(stage=1).parse_args()
    # Imported here, so that --help and wrong flags answer at once.
    from model.building import load_network
    from utils.common import distributed
    from utils.common.checkpoints import age_interval_of, load_checkpoint
    from utils.common.files import check_results, sha256_of
    from utils.common.log_file import keep_log
    from utils.data.cohort import load_cohort
    from utils.data.dataset import ScanDataset
    from utils.data.discretized_ages import write_discretized_ages
    from utils.data.scans import ScanStore, data_settings
    from utils.evaluation.predicting import predict, seen_in_training, warn_of_preparation
    from utils.evaluation.reports import announce_report, report_files, write_report
    from utils.training.stages import FirstStage

    options = {"batch_size": args.batch_size, "num_workers": args.num_workers, "precision": args.precision}
    table = f"{args.split}_discretized_age.npy"
    names = [*report_files(args.npz_name, args.plot_name), table]
    check_results(args.output_dir, names, args.overwrite, args.test_folder)
    device = distributed.start(args.device)
    checkpoint = load_checkpoint(args.checkpoint)
    with user_errors(str(args.checkpoint)):
        network = load_network(checkpoint, stage=1, use_sex=args.use_sex)
        settings = data_settings(checkpoint, args.normalization)
        age_interval = age_interval_of(checkpoint, args.age_interval)
    scans = ScanStore(*settings, args.cache_folder, args.num_workers)
    subjects = load_cohort(
        {"test": args.test_folder},
        args.label_table,
        scans,
        use_sex=network.config.use_sex,
        sex_of_all=args.sex,
        ages_required=False,
    )["test"]
    seen = seen_in_training(subjects, args.checkpoint, checkpoint)
    warn_of_preparation(subjects, args.checkpoint, checkpoint)
    keep_log(args.output_dir, device)
    dataset = ScanDataset(subjects, scans)
    stage = FirstStage()
    predictions = predict(network.to(device), stage, dataset, device, label="first stage", **options)
    if distributed.rank() == 0:
        metrics = write_report(
            args.output_dir, subjects, predictions, "First stage", (), args.npz_name, args.plot_name, stage.report,
            weights_sha256=sha256_of(args.checkpoint),
        )  # fmt: skip
        write_discretized_ages(
            args.output_dir / table,
            [subject.subject_id for subject in subjects],
            predictions["brain_age"],
            age_interval,
            sha256_of(args.checkpoint),
            out_of_fold=~seen,
        )
        announce_report(args.output_dir, "first stage", metrics)
    distributed.stop()


if __name__ == "__main__":
    run_command(main, several=True)
